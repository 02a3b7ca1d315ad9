"""Suites without a grid: one concept, the prompts of a list that ask for it, and a judge that says whether it is there. No torch here."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from erasure.concept import ConceptKind
from eval.suites.list_reader import HUB_PREFIX, ListedPrompt, PromptList, PromptListOrigin, locate_list, read_prompt_list

Axis = Literal["style", "object"]


def cross_axis(axis: Axis) -> Axis:
    """The other axis."""
    return "object" if axis == "style" else "style"


@dataclass(frozen=True)
class PromptListSpec:
    """What a suite of prompts alone asks about."""

    axis: Axis  # on which its rows stand: style for the kind style, object for all others
    label: str  # what the judge says where it sees the concept
    kind: ConceptKind
    names: tuple[str, ...]  # under which an edit may have erased it
    max_prompts: dict[str, int]  # tier -> prompts drawn at most, evenly spaced; a tier that is not there draws all
    prompts: tuple[ListedPrompt, ...] = ()  # empty: the user's copy is needed
    origin: PromptListOrigin | None = None  # of those prompts


def as_grid_record(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """The keys of a suite of prompts as those of a grid of one label, with `listed` beside them.

    Args:
        record: a PromptsFile.

    Raises:
        UserError: a list that cannot be read.
    """
    concept, kind = record["concept"], record["kind"]
    label, names = record.get("label", concept), record.get("names", [])
    axis: Axis = "style" if kind == "style" else "object"
    max_prompts = {tier: tier_spec["prompts"] for tier, tier_spec in record["tiers"].items() if "prompts" in tier_spec}
    prompt_list = load_prompt_list(record["list"], path.parent) if "list" in record else None
    shared_keys = ("name", "version", "steps", "guidance", "gates", "benign", "attacks", "published")
    return {
        **{key: record[key] for key in shared_keys if key in record},
        "features": record.get("features", {}),
        "template": "{object}{style}",
        "described": "{object}{style}",
        "aliases": {},
        "mutations": [],
        "apart": [],
        "tiers": {tier: (tier_spec["pictures"], 1) for tier, tier_spec in record["tiers"].items()},
        "judges": {axis: record["judge"], **({"clip": record["clip"]} if "clip" in record else {})},
        "styles": {label: concept} if axis == "style" else {},
        "objects": {label: concept} if axis == "object" else {},
        "listed": PromptListSpec(axis, label, kind, tuple(dict.fromkeys([concept, label, *names])), max_prompts, *(prompt_list or ())),
    }


def load_prompt_list(source: str, beside: Path = Path()) -> PromptList:
    """The prompts of a list: a path, or hub:ORG/NAME/FILE; `#` and a column's name behind it choose another column."""
    file, column = split_column(source)
    return read_prompt_list(locate_list(file, beside), column, source if source.startswith(HUB_PREFIX) else Path(source).name)


def split_column(source: str) -> tuple[str, str]:
    """File and column of a list's address; the column is empty where none is named."""
    file, _, column = source.rpartition("#") if "#" in Path(source).name else (source, "", "")
    return file, column


def prompt_list_records(spec: PromptListSpec | None, replay_origin: PromptListOrigin | None) -> list[dict[str, Any]]:
    """The list files of an audit, for its result: what each is used for, which file it is, and what of it was left out."""
    origins = (("prompts", spec.origin if spec else None), ("replay", replay_origin))
    return [{"use": use, **asdict(origin)} for use, origin in origins if origin]
