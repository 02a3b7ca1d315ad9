"""Suites without a grid: one concept, the prompts of a list that ask for it, and a judge that says whether it is there. No torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from erasure.concept import Kind
from erasure.errors import UserError, unknown
from eval.readers import HUB, Prompt, located, read_prompts

Axis = Literal["style", "object"]
NEEDED = {"name", "version", "form", "concept", "kind", "judge", "steps", "guidance", "tiers", "gates"}
OPTIONAL = {"names", "label", "list", "clip", "benign", "attacks", "features", "published"}
PART = ("pictures", "prompts")  # of a tier


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

    Raises:
        UserError: a value of the wrong kind, or a list that cannot be read.
    """
    concept, kind = text(record, "concept", path), text(record, "kind", path)
    if kind not in get_args(Kind):
        raise unknown(f"kind in {path}", kind, get_args(Kind))
    label = text(record, "label", path) if "label" in record else concept
    names = record.get("names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: names must be a list of other names of the concept, got {names!r}.")
    axis: Axis = "style" if kind == "style" else "object"
    tiers, most = _tiers(record["tiers"], path)
    prompts = read_list(text(record, "list", path), path.parent) if "list" in record else ()
    shared = ("name", "version", "steps", "guidance", "gates", "benign", "attacks", "published")
    return {
        **{key: record[key] for key in shared if key in record},
        "features": record.get("features", {}),
        "template": "{object}{style}",
        "described": "{object}{style}",
        "aliases": {},
        "mutations": [],
        "apart": [],
        "tiers": tiers,
        "judges": {axis: record["judge"], **({"clip": record["clip"]} if "clip" in record else {})},
        "styles": {label: concept} if axis == "style" else {},
        "objects": {label: concept} if axis == "object" else {},
        "listed": Listed(axis, label, kind, tuple(dict.fromkeys([concept, label, *names])), most, prompts),  # type: ignore[arg-type]  # checked
    }


def read_list(source: str, beside: Path = Path()) -> tuple[Prompt, ...]:
    """The prompts of a list: a path, or hub:ORG/NAME/FILE; `#` and a column's name behind it choose another column."""
    file, _, column = source.rpartition("#") if "#" in Path(source).name else (source, "", "")
    return tuple(read_prompts(located(file, beside), column))


def text(record: dict[str, Any], key: str, path: Path) -> str:
    """A word of a suite.

    Raises:
        UserError: anything else.
    """
    if not isinstance(record[key], str) or not record[key].strip():
        what = f"a path or {HUB}ORG/NAME/FILE" if key == "list" else "text"
        raise UserError(f"{path}: {key} must be {what}, got {record[key]!r}.")
    return str(record[key])


def _tiers(record: Any, path: Path) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Pictures of a listed prompt and of any other case, and the most prompts, by tier."""
    if not isinstance(record, dict) or not all(isinstance(part, dict) for part in record.values()):
        raise UserError(f"{path}: tiers must map each tier to its pictures a prompt, such as smoke: {{pictures: 1, prompts: 20}}.")
    for tier, part in record.items():
        for key, value in part.items():
            if key not in PART:
                raise unknown(f"key of tier {tier} in {path}", str(key), PART)
            if type(value) is not int or value < 1:
                raise UserError(f"{path}: {key} of tier {tier} must be a whole number from 1 on, got {value!r}.")
        if "pictures" not in part:
            raise UserError(f"{path}: tier {tier} lacks pictures, the number a prompt.")
    return {tier: (part["pictures"], 1) for tier, part in record.items()}, {
        t: part["prompts"] for t, part in record.items() if "prompts" in part
    }
