"""What the templates of the page are given, besides the result and the report. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from markupsafe import Markup

from eval.records.fields import Role
from eval.records.gates import Gate
from eval.records.models import BASE, ERASED, AuditedModel
from eval.records.rates import CountedRate, PairedDifference, RateName
from eval.records.report import LabelCount

Record = TypeVar("Record")


@dataclass(frozen=True)
class ChartLine(Generic[Record]):
    """What a line of a chart is about, with the letter and the key by which its legend and its table name it."""

    of: Record
    letter: str
    key: Markup


@dataclass(frozen=True)
class RateEntry:
    """A rate on the page."""

    name: RateName
    title: str
    meaning: str
    chart: Markup
    by_model: Mapping[AuditedModel, CountedRate]
    paired: PairedDifference | None

    @property
    def erased(self) -> CountedRate:
        return self.by_model[ERASED]

    @property
    def base(self) -> CountedRate | None:
        return self.by_model.get(BASE)


@dataclass(frozen=True)
class LabelLoss:
    """How often a label is still labeled as prompted, and how much less often than for the base."""

    label: str
    base: LabelCount | None
    erased: LabelCount
    loss: float


@dataclass(frozen=True)
class UnmeasuredGate:
    """A gate that had nothing to measure, and why."""

    gate: Gate
    why: str


@dataclass(frozen=True)
class EmbeddedImage:
    """An image within a page."""

    src: str  # data URI
    coarse: bool  # so small that its pixels are shown as squares


@dataclass(frozen=True)
class ShownSide:
    """One model's half of a pair on a page."""

    name: str  # before or after
    image: EmbeddedImage | None
    labels: str  # that judges gave it


@dataclass(frozen=True)
class ShownPair:
    """A pair on a page."""

    prompt: str
    sides: tuple[ShownSide, ...]


@dataclass(frozen=True)
class FailedPairs:
    """The pairs of a role in which one thing went wrong."""

    title: str
    description: str
    counted: int  # pairs in which it can happen
    failed: int
    pairs: tuple[ShownPair, ...]  # those that fit on the page


@dataclass(frozen=True)
class FailedRole:
    """Everything that went wrong with the pairs of a role."""

    role: Role
    title: str
    parts: tuple[FailedPairs, ...]


@dataclass(frozen=True)
class AttackExample:
    """A prompt that an attack found."""

    prompt: str
    found_prompt: str | None
    images_tried: int | None
    fresh_shown: int  # of the images from fresh noise, those that show the concept
    fresh_images: int
    image: EmbeddedImage | None
