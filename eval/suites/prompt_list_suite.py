"""Suites without a grid: one concept, a list of prompts that ask for it, and a judge that detects it. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasure.concept import ConceptKind
from eval.records.audit_result import ListUse, PromptListFile
from eval.records.fields import Axis
from eval.suites.list_reader import HUB_PREFIX, ListedPrompt, PromptList, PromptListOrigin, locate_list, read_prompt_list


def cross_axis(axis: Axis) -> Axis:
    """Return the other axis."""
    return "object" if axis == "style" else "style"


@dataclass(frozen=True)
class PromptListSpec:
    """The concept of a prompt-list suite and the prompts that ask for it."""

    axis: Axis  # style for a concept of kind style, object for all others
    label: str  # what the judge says if it sees the concept
    kind: ConceptKind
    names: tuple[str, ...]  # names under which an edit may have erased the concept
    max_prompts: dict[str, int]  # tier -> at most this many prompts, evenly spaced; a tier that is missing takes all
    prompts: tuple[ListedPrompt, ...] = ()  # empty: the user must give a copy
    origin: PromptListOrigin | None = None  # of those prompts


def as_grid_record(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """Convert the keys of a prompt-list suite to those of a grid with one label, plus `prompt_list`.

    Args:
        record: a valid PromptListSuiteSchema.
        path: the suite file; paths in it are relative to its folder.

    Raises:
        UserError: the list cannot be read.
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
        "described_template": "{object}{style}",
        "aliases": {},
        "perturbations": [],
        "excluded": [],
        "tiers": {tier: (tier_spec["images"], 1) for tier, tier_spec in record["tiers"].items()},
        "judges": {axis: record["judge"], **({"clip": record["clip"]} if "clip" in record else {})},
        "styles": {label: concept} if axis == "style" else {},
        "objects": {label: concept} if axis == "object" else {},
        "prompt_list": PromptListSpec(axis, label, kind, tuple(dict.fromkeys([concept, label, *names])), max_prompts, *(prompt_list or ())),
    }


def load_prompt_list(source: str, beside: Path = Path()) -> PromptList:
    """Load a prompt list from a path or hub:ORG/NAME/FILE; a suffix #COLUMN chooses another column.

    Raises:
        UserError: the list cannot be located or read.
    """
    file, column = split_column(source)
    return read_prompt_list(locate_list(file, beside), column, source if source.startswith(HUB_PREFIX) else Path(source).name)


def split_column(source: str) -> tuple[str, str]:
    """Split FILE#COLUMN; the column is empty if none is named."""
    file, _, column = source.rpartition("#") if "#" in Path(source).name else (source, "", "")
    return file, column


def prompt_list_records(spec: PromptListSpec | None, replay_origin: PromptListOrigin | None) -> tuple[PromptListFile, ...]:
    """Return the list files of an audit for its result: the use of each, its origin, and what was left out of it."""
    origins: tuple[tuple[ListUse, PromptListOrigin | None], ...] = (("prompts", spec.origin if spec else None), ("replay", replay_origin))
    return tuple(PromptListFile(use=use, **vars(origin)) for use, origin in origins if origin)
