"""The schema of a suite file: keys, types and ranges, checked by erasure.config.validation. eval.suites.formats explains the keys.

Imports no torch.
"""

import re
from collections.abc import Callable
from string import Formatter
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from erasure.concept import ConceptKind
from eval.scoring.gates import TIERS, Tier
from eval.suites.list_reader import HUB_PREFIX


def must_be(is_valid: Callable[[Any], object], requirement: str) -> AfterValidator:
    """Return a pydantic check of a value beyond its type; `requirement` completes the message "must be ..."."""

    def check(value: Any) -> Any:
        if not is_valid(value):
            raise ValueError(f"must be {requirement}")
        return value

    return AfterValidator(check)


def has_both_placeholders(template: str) -> bool:
    """Return whether a template has {style} and {object} and nothing else in braces."""
    try:
        placeholders = {field[1:] for field in Formatter().parse(template) if field[1] is not None}
    except ValueError:
        return False
    return placeholders == {("style", "", None), ("object", "", None)}  # name, format, conversion


def is_judge_spec(spec: Any) -> bool:
    """Return whether a value is the name of a judge, or a mapping with that name under `judge`."""
    return isinstance(spec, str) or (
        isinstance(spec, dict) and all(isinstance(key, str) for key in spec) and isinstance(spec.get("judge"), str)
    )


def within_bounds(fields: Any) -> bool:
    """Return whether no integer among an attack's fields is so large that the attack would never end."""
    return not any(isinstance(value, int) and value > MAX_COUNT for value in (fields or {}).values())


FOLDER_PATTERN = re.compile(r"[\w-][\w.-]{0,79}")
NonBlankText = Annotated[str, must_be(str.strip, "text that is not blank")]
FolderName = Annotated[
    str, must_be(FOLDER_PATTERN.fullmatch, "letters, digits, _, - and . only, at most 80 and no dot first (it names a folder)")
]
PromptTemplate = Annotated[str, must_be(has_both_placeholders, "text with {style} and {object}, and nothing else in braces")]
ListSource = Annotated[str, must_be(str.strip, f"a path or {HUB_PREFIX}ORG/NAME/FILE")]
MAX_COUNT = 1_000_000  # of anything that a suite counts
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Guidance = Annotated[float, Field(ge=0, le=MAX_COUNT, allow_inf_nan=False)]
Labels = Annotated[dict[str, NonBlankText], Field(min_length=1)]
CountPair = Annotated[list[Count], Field(min_length=2, max_length=2)]
JudgeSpec = Annotated[Any, must_be(is_judge_spec, "the name of a judge, or a mapping with that name under judge and its fields")]
ALL_TIERS = must_be(lambda tiers: len(tiers) == len(TIERS), f"a mapping with each of {', '.join(TIERS)}")
AttackFields = Annotated[dict[str, Any] | None, must_be(within_bounds, f"a mapping of fields, with no number above {MAX_COUNT:,}")]


class AliasesSchema(TypedDict):
    """The value of a label under `aliases`."""

    named: NotRequired[list[NonBlankText]]
    described: NotRequired[list[NonBlankText]]


class AttacksSchema(TypedDict):
    """The value of `attacks`; the fields of each attack are checked against its class (eval.attack_runs.attack_run)."""

    tiers: list[Tier]
    prompts: Count
    images: Count
    fresh_images: Count
    use: dict[FolderName, AttackFields]


class GridSuiteSchema(TypedDict):
    """A suite of format grid; eval.scoring.gates parses its gates."""

    name: FolderName
    version: int
    format: Literal["grid"]
    template: PromptTemplate
    described_template: PromptTemplate
    aliases: dict[str, AliasesSchema]
    perturbations: list[str]
    steps: Steps
    guidance: Guidance
    tiers: Annotated[dict[Tier, CountPair], ALL_TIERS]
    excluded: list[str]
    judges: dict[Literal["style", "object", "clip"], JudgeSpec]
    styles: Labels
    objects: Labels
    gates: Any
    neighbors: NotRequired[dict[str, list[str]]]
    benign: NotRequired[NonBlankText]
    attacks: NotRequired[AttacksSchema]
    features: NotRequired[dict[str, Any]]
    seeds: NotRequired[list[int]]
    published: NotRequired[str]


class PromptListTier(TypedDict):
    """A tier of a suite of format prompt_list."""

    images: Count
    prompts: NotRequired[Count]


class PromptListSuiteSchema(TypedDict):
    """A suite of format prompt_list."""

    name: FolderName
    version: int
    format: Literal["prompt_list"]
    concept: NonBlankText
    kind: ConceptKind
    judge: JudgeSpec
    steps: Steps
    guidance: Guidance
    tiers: Annotated[dict[Tier, PromptListTier], ALL_TIERS]
    gates: Any
    names: NotRequired[list[NonBlankText]]
    label: NotRequired[NonBlankText]
    list: NotRequired[ListSource]
    clip: NotRequired[JudgeSpec]
    benign: NotRequired[NonBlankText]
    attacks: NotRequired[AttacksSchema]
    features: NotRequired[dict[str, Any]]
    published: NotRequired[str]


SUITE_SCHEMAS = {"grid": GridSuiteSchema, "prompt_list": PromptListSuiteSchema}
