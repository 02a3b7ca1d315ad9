"""The two formats of a suite: a grid of styles and objects, or a list of prompts for one concept. Imports no torch.

`Suite` is the union of both; the field `format` tells them apart. What they share is in `SuiteSettings`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import ConfigDict

from erasure.concept import ConceptKind
from erasure.errors import UserError, unknown_value_error
from eval.scoring.gates import Gate, Tier
from eval.suites.axes import Axis
from eval.suites.list_reader import ListedPrompt, PromptListOrigin

JudgePart = Literal["style", "object", "clip"]  # what a judge scores: an axis, or the alignment with the prompt
Protocol = Literal["", "unlearncanvas", "unlearndiffatk"]  # whose figures a report shows beside the corrected ones; empty: none
OTHER_LABEL = "other"  # stands for every label that a judge reads and the suite lacks
RESERVED_LABELS = ("none", OTHER_LABEL)  # no label of a suite may have these names


@dataclass(frozen=True)
class JudgeSpec:
    """A judge as a suite names it; eval.scoring.judge_scores builds it."""

    judge: str  # module in eval.judges
    fields: dict[str, Any] = field(default_factory=dict)  # of its class, which checks them
    calibration: str | None = None  # file of its measured errors; None: the shipped one, if there is one


@dataclass(frozen=True)
class AttackSpec:
    """An attack as a suite names it; eval.attack_runs.attack_run builds it."""

    name: str  # of its folder and in the report
    attack: str  # module in eval.attacks
    fields: dict[str, Any] = field(default_factory=dict)  # of its class, which checks them


@dataclass(frozen=True)
class ExtractorSpec:
    """An extractor of features, by which image sets are compared, as a suite names it; eval.metrics.features builds it."""

    extractor: str
    fields: dict[str, Any] = field(default_factory=dict)  # of its class, which checks them


@dataclass(frozen=True)
class SuiteAttacks:
    """The attacks of a suite and their budgets."""

    tiers: tuple[Tier, ...] = ()  # tiers that run attacks
    prompts: int = 0  # number of attacked prompts
    images: int = 0  # that a search may generate per prompt
    fresh_images: int = 0  # per prompt that a search found, from noise that it has not seen
    use: tuple[AttackSpec, ...] = ()


@dataclass(frozen=True)
class Aliases:
    """Other ways to ask for a concept."""

    named: tuple[str, ...] = ()  # synonyms
    described: tuple[str, ...] = ()  # descriptions that never name it


class CellImages(NamedTuple):
    """Images of each model in a tier of a grid, per cell."""

    target: int  # in a cell of the target
    other: int  # in every other cell


@dataclass(frozen=True)
class ListTier:
    """A tier of a prompt list."""

    images: int  # of each model, per prompt
    prompts: int | None = None  # at most this many, evenly spaced; None: all


@dataclass(frozen=True, kw_only=True)
class SuiteSettings:
    """What suites of both formats hold."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    version: int
    steps: int  # of the sampler
    guidance: float  # classifier-free guidance scale
    judges: dict[JudgePart, JudgeSpec]
    gates: tuple[Gate, ...] = ()
    benign: tuple[str, ...] = ()  # captions unrelated to every concept
    attacks: SuiteAttacks = SuiteAttacks()
    features: ExtractorSpec | None = None  # of image-set distances; None: no distances
    published: Protocol = ""
    file: str = ""  # name of the user's suite file; empty for a shipped suite


@dataclass(frozen=True, kw_only=True)
class GridSuite(SuiteSettings):
    """A grid of styles and objects in UnlearnCanvas form (Zhang et al., arXiv:2402.11846): every cell is a prompt."""

    format: Literal["grid"] = "grid"
    template: str  # with {style} and {object}
    described_template: str  # the template for a style that is described, not named
    styles: dict[str, str]  # label -> phrase in a prompt
    objects: dict[str, str]
    tiers: dict[Tier, CellImages]
    excluded: tuple[str, ...] = ()  # styles that are excluded from the rates of retained styles
    aliases: dict[str, Aliases] = field(default_factory=dict)  # label of either axis -> aliases
    perturbations: tuple[str, ...] = ()  # names in eval.suites.perturbations, applied to every prompt for the target
    neighbors: dict[str, tuple[str, ...]] = field(default_factory=dict)  # label -> phrases of related concepts that should be retained
    seeds: tuple[int, ...] = ()  # of the images of every cell; empty: each image has its own

    def phrases(self, axis: Axis) -> dict[str, str]:
        """Return the labels of an axis with their phrases in prompts."""
        return self.styles if axis == "style" else self.objects

    def find_concept(self, concept: str) -> tuple[Axis, str]:
        """Return the axis and label that a concept name means: a label or its phrase.

        Raises:
            UserError: the suite has no such concept; the nearest is named.
        """
        axes: tuple[Axis, Axis] = ("style", "object")
        names: list[tuple[str, tuple[Axis, str]]] = [
            (name, (axis, label))
            for axis in axes
            for label, phrase in self.phrases(axis).items()
            for name in (label, phrase, phrase.removeprefix("a "))
        ]
        return _match_concept(concept, names, self.name)


@dataclass(frozen=True, kw_only=True)
class PromptListSuite(SuiteSettings):
    """One concept, a list of prompts that ask for it, and a judge that detects it. No prompt asks for anything else."""

    format: Literal["prompt_list"] = "prompt_list"
    concept: str
    label: str  # what the judge says if it sees the concept
    kind: ConceptKind
    names: tuple[str, ...]  # names under which an edit may have erased the concept
    tiers: dict[Tier, ListTier]
    prompts: tuple[ListedPrompt, ...] = ()  # empty: the user must give a copy
    origin: PromptListOrigin | None = None  # of those prompts

    excluded: ClassVar[tuple[str, ...]] = ()  # there are no other labels

    @property
    def axis(self) -> Axis:
        """Style for a concept of kind style, object for all others."""
        return "style" if self.kind == "style" else "object"

    def phrases(self, axis: Axis) -> dict[str, str]:
        """Return the concept's label with its phrase, on its own axis; empty for the other axis."""
        return {self.label: self.concept} if axis == self.axis else {}

    def find_concept(self, concept: str) -> tuple[Axis, str]:
        """Return the axis and label that a concept name means: any name of the list's concept.

        Raises:
            UserError: the suite has no such concept; the nearest is named.
        """
        names = (*self.names, self.label, self.concept, self.concept.removeprefix("a "))
        return _match_concept(concept, [(name, (self.axis, self.label)) for name in names], self.name)


Suite = GridSuite | PromptListSuite


def has_prompts(suite: Suite) -> bool:
    """Return whether a suite has prompts; a suite of a prompt list may leave the list to the user."""
    return isinstance(suite, GridSuite) or bool(suite.prompts)


def check_has_prompts(suite: Suite) -> None:
    """Check that a suite of a prompt list has its list.

    Raises:
        UserError: the suite ships no list and none was given.
    """
    if not has_prompts(suite):
        raise UserError(f"suite {suite.name} ships no prompts; give your own copy of a list with --prompt-list FILE.")


def _match_concept(concept: str, names: Iterable[tuple[str, tuple[Axis, str]]], suite: str) -> tuple[Axis, str]:
    concepts_by_name = {name.lower(): axis_and_label for name, axis_and_label in names}
    match = concepts_by_name.get(concept.lower())
    if match is None:
        raise unknown_value_error(f"concept for suite {suite}", concept, concepts_by_name)
    return match


def parse_judge(spec: str | Mapping[str, Any]) -> JudgeSpec:
    """Parse a judge of a suite file: its name, or a mapping with the name under `judge` and its fields."""
    if isinstance(spec, str):
        return JudgeSpec(spec)
    fields = {key: value for key, value in spec.items() if key not in ("judge", "calibration")}
    return JudgeSpec(spec["judge"], fields, str(spec["calibration"]) if "calibration" in spec else None)


def parse_attacks(use: Mapping[str, Mapping[str, Any] | None]) -> tuple[AttackSpec, ...]:
    """Parse the attacks of a suite file: name -> fields; `attack` among them names the module if the name does not."""
    return tuple(
        AttackSpec(name, str((fields or {}).get("attack", name)), {key: v for key, v in (fields or {}).items() if key != "attack"})
        for name, fields in use.items()
    )


def parse_extractor(settings: Mapping[str, Any]) -> ExtractorSpec | None:
    """Parse `features` of a suite file: the extractor's name under `extractor`, and its fields; empty for none."""
    if not settings:
        return None
    return ExtractorSpec(str(settings.get("extractor")), {key: value for key, value in settings.items() if key != "extractor"})
