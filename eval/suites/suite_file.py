"""What a suite file may hold: keys, shapes and ranges, held against it by eval.shapes. What the keys mean is said in eval.suites.suite.

No torch here.
"""

import re
from collections.abc import Callable
from string import Formatter
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from erasure.concept import Kind
from eval.scoring.gates import TIERS, Tier
from eval.suites.list_reader import HUB


def limit(holds: Callable[[Any], object], words: str) -> AfterValidator:
    """What must hold of a value beyond its type; the words follow "must be"."""

    def held(value: Any) -> Any:
        if not holds(value):
            raise ValueError(f"must be {words}")
        return value

    return AfterValidator(held)


def fills_both(template: str) -> bool:
    """Whether a sentence has a place for the style and one for the object, and nothing else in braces."""
    try:
        places = {place[1:] for place in Formatter().parse(template) if place[1] is not None}
    except ValueError:
        return False
    return places == {("style", "", None), ("object", "", None)}  # name, format, conversion


def names_judge(given: Any) -> bool:
    """Whether it is text, or a mapping from text that has a name under `judge`."""
    return isinstance(given, str) or (
        isinstance(given, dict) and all(isinstance(key, str) for key in given) and isinstance(given.get("judge"), str)
    )


def within_bounds(fields: Any) -> bool:
    """Whether no whole number among an attack's fields is so large that the attack would never end."""
    return not any(isinstance(value, int) and value > MOST for value in (fields or {}).values())


FOLDER = re.compile(r"[\w-][\w.-]{0,79}")
Text = Annotated[str, limit(str.strip, "text that is not blank")]
Name = Annotated[str, limit(FOLDER.fullmatch, "letters, digits, _, - and . alone, at most 80 and no dot first (it names a folder)")]
Template = Annotated[str, limit(fills_both, "text with {style} and {object}, and nothing else in braces")]
Source = Annotated[str, limit(str.strip, f"a path or {HUB}ORG/NAME/FILE")]
MOST = 1_000_000  # of anything that a suite counts
Count = Annotated[int, Field(ge=1, le=MOST)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Guidance = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]
Labels = Annotated[dict[str, Text], Field(min_length=1)]
Pair = Annotated[list[Count], Field(min_length=2, max_length=2)]
Judge = Annotated[Any, limit(names_judge, "the name of a judge, or a mapping with that name under judge and its fields")]
EVERY = limit(lambda tiers: len(tiers) == len(TIERS), f"a mapping with each of {', '.join(TIERS)}")


class AliasFile(TypedDict):
    """Under a label of `aliases`."""

    named: NotRequired[list[Text]]
    described: NotRequired[list[Text]]


class AttackFile(TypedDict):
    """Under `attacks`; the fields of each are held against its class (eval.attack_runs.runner)."""

    tiers: list[Tier]
    prompts: Count
    pictures: Count
    fresh: Count
    use: dict[Name, Annotated[dict[str, Any] | None, limit(within_bounds, f"a mapping of fields, with no number above {MOST:,}")]]


class GridFile(TypedDict):
    """The form unlearncanvas; gates are read by eval.scoring.gates."""

    name: Name
    version: int
    form: str
    template: Template
    described: Template
    aliases: dict[str, AliasFile]
    mutations: list[str]
    steps: Steps
    guidance: Guidance
    tiers: Annotated[dict[Tier, Pair], EVERY]
    apart: list[str]
    judges: dict[Literal["style", "object", "clip"], Judge]
    styles: Labels
    objects: Labels
    gates: Any
    neighbours: NotRequired[dict[str, list[str]]]
    benign: NotRequired[Text]
    attacks: NotRequired[AttackFile]
    features: NotRequired[dict[str, Any]]
    seeds: NotRequired[list[int]]
    published: NotRequired[str]


class Part(TypedDict):
    """A tier of the form prompts."""

    pictures: Count
    prompts: NotRequired[Count]


class PromptsFile(TypedDict):
    """The form prompts."""

    name: Name
    version: int
    form: str
    concept: Text
    kind: Kind
    judge: Judge
    steps: Steps
    guidance: Guidance
    tiers: Annotated[dict[Tier, Part], EVERY]
    gates: Any
    names: NotRequired[list[Text]]
    label: NotRequired[Text]
    list: NotRequired[Source]
    clip: NotRequired[Judge]
    benign: NotRequired[Text]
    attacks: NotRequired[AttackFile]
    features: NotRequired[dict[str, Any]]
    published: NotRequired[str]
