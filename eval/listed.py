"""Suites without a grid: one concept, the prompts of a list that ask for it, and a judge that says whether it is there. No torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from erasure.concept import Kind
from eval.readers import Prompt, located, read_prompts

Axis = Literal["style", "object"]


def crossing(axis: Axis) -> Axis:
    """The other axis."""
    return "object" if axis == "style" else "style"


@dataclass(frozen=True)
class Listed:
    """What a suite of prompts alone asks about."""

    axis: Axis  # on which its rows stand: style for the kind style, object for all others
    label: str  # what the judge says where it sees the concept
    kind: Kind
    names: tuple[str, ...]  # under which an edit may have erased it
    most: dict[str, int]  # tier -> prompts drawn at most, evenly spaced; a tier that is not there draws all
    prompts: tuple[Prompt, ...] = ()  # empty: the user's copy is needed


def as_grid(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """The keys of a suite of prompts as those of a grid of one label, with `listed` beside them.

    Args:
        record: a PromptsFile.

    Raises:
        UserError: a list that cannot be read.
    """
    concept, kind = record["concept"], record["kind"]
    label, names = record.get("label", concept), record.get("names", [])
    axis: Axis = "style" if kind == "style" else "object"
    most = {tier: part["prompts"] for tier, part in record["tiers"].items() if "prompts" in part}
    prompts = read_list(record["list"], path.parent) if "list" in record else ()
    shared = ("name", "version", "steps", "guidance", "gates", "benign", "attacks", "published")
    return {
        **{key: record[key] for key in shared if key in record},
        "features": record.get("features", {}),
        "template": "{object}{style}",
        "described": "{object}{style}",
        "aliases": {},
        "mutations": [],
        "apart": [],
        "tiers": {tier: (part["pictures"], 1) for tier, part in record["tiers"].items()},
        "judges": {axis: record["judge"], **({"clip": record["clip"]} if "clip" in record else {})},
        "styles": {label: concept} if axis == "style" else {},
        "objects": {label: concept} if axis == "object" else {},
        "listed": Listed(axis, label, kind, tuple(dict.fromkeys([concept, label, *names])), most, prompts),
    }


def read_list(source: str, beside: Path = Path()) -> tuple[Prompt, ...]:
    """The prompts of a list: a path, or hub:ORG/NAME/FILE; `#` and a column's name behind it choose another column."""
    file, _, column = source.rpartition("#") if "#" in Path(source).name else (source, "", "")
    return tuple(read_prompts(located(file, beside), column))
