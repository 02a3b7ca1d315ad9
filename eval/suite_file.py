"""What a suite file may hold: keys, shapes and ranges, held against it by eval.shapes. What the keys mean is said in eval.suites.

No torch here.
"""

import math
import re
from string import Formatter
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from erasure.concept import Kind
from eval.gates import TIERS, Tier
from eval.readers import HUB
from eval.shapes import Limit


def fills_both(template: str) -> bool:
    """Whether a sentence has a place for the style and one for the object, and nothing else in braces."""
    try:
        places = {place[1:] for place in Formatter().parse(template) if place[1] is not None}
    except ValueError:
        return False
    return places == {("style", "", None), ("object", "", None)}  # name, format, conversion


FOLDER = re.compile(r"[\w-][\w.-]{0,79}")
Text = Annotated[str, Limit(str.strip, "text")]
Name = Annotated[str, Limit(FOLDER.fullmatch, "letters, digits, _, - and . alone, at most 80 and no dot first (it names a folder)")]
Template = Annotated[str, Limit(fills_both, "text with {style} and {object}, and nothing else in braces")]
Source = Annotated[str, Limit(str.strip, f"a path or {HUB}ORG/NAME/FILE")]
Count = Annotated[int, Limit(lambda n: n >= 1, "a whole number from 1 on")]
Steps = Annotated[int, Limit(lambda n: 1 <= n <= 1000, "a whole number from 1 to 1000")]
Guidance = Annotated[float, Limit(lambda scale: 0 <= scale < math.inf, "a number from 0 on")]
Labels = Annotated[dict[str, Text], Limit(len, "a mapping of labels to words")]
Judge = str | dict[str, Any]
EVERY = Limit(lambda tiers: len(tiers) == len(TIERS), f"a mapping with each of {', '.join(TIERS)}")


class AliasFile(TypedDict):
    """Under a label of `aliases`."""

    named: NotRequired[list[Text]]
    described: NotRequired[list[Text]]


class AttackFile(TypedDict):
    """Under `attacks`; the fields of each are held against its class (eval.siege)."""

    tiers: list[Tier]
    prompts: Count
    pictures: Count
    fresh: Count
    use: dict[Name, dict[str, Any] | None]


class GridFile(TypedDict):
    """The form unlearncanvas; gates are read by eval.gates."""

    name: Name
    version: int
    form: str
    template: Template
    described: Template
    aliases: dict[str, AliasFile]
    mutations: list[str]
    steps: Steps
    guidance: Guidance
    tiers: Annotated[dict[Tier, tuple[Count, Count]], EVERY]
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
