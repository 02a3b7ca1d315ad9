"""What an audit counts: rates with their intervals, paired differences, confusion and alignment. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from eval.records.fields import Count, Difference, FiniteNumber, OptionalKey, Proportion
from eval.stats.intervals import Interval


class RateName(StrEnum):
    """The rates of an audit (docs/reference/glossary.md)."""

    UA = "UA"
    UA_SHOWN = "UA_shown"
    UA_NAMED = "UA_named"
    UA_DESCRIBED = "UA_described"
    UA_PERTURBED = "UA_perturbed"
    UA_REPLAYED = "UA_replayed"
    UA_ATTACKED = "UA_attacked"
    FR = "FR"
    IRA = "IRA"
    CRA = "CRA"
    NRA = "NRA"
    IPA = "IPA"
    CRA_INCLUDED = "CRA_included"


@dataclass(frozen=True, kw_only=True)
class CountedRate:
    """A rate with its interval (eval.scoring.rates.counted_rate)."""

    k: Count
    n: Annotated[int, Field(ge=1)]
    estimate: Proportion
    low: Proportion
    high: Proportion
    # how many independent trials the n are worth, if some prompt has several images
    effective: OptionalKey[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = None

    @property
    def interval(self) -> Interval:
        return Interval(self.estimate, self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class SuccessCount:
    """Successes k in n trials; n may be 0."""

    k: Count
    n: Count


@dataclass(frozen=True, kw_only=True)
class MeanEstimate:
    """A mean and its 95% interval."""

    estimate: FiniteNumber
    low: FiniteNumber
    high: FiniteNumber


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The erased model's rate minus the base's (eval.scoring.counting.paired_differences)."""

    estimate: Difference
    low: Difference
    high: Difference
    both: Count
    erased_only: Count
    base_only: Count
    neither: Count
    p: Proportion  # McNemar's

    @property
    def n(self) -> int:
        """Number of pairs."""
        return self.both + self.erased_only + self.base_only + self.neither


@dataclass(frozen=True, kw_only=True)
class ConfusionMatrix:
    """Image counts by prompted label (rows) and read label (columns)."""

    labels: tuple[str, ...]
    counts: tuple[tuple[Count, ...], ...]


@dataclass(frozen=True, kw_only=True)
class AlignmentByPart:
    """CLIP alignment, 100 x cosine, by part; None if it was not measured."""

    retained: MeanEstimate | None
    target: MeanEstimate | None
    benign: MeanEstimate | None


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """What was counted for one model."""

    rates: Mapping[RateName, CountedRate]
    confusion: ConfusionMatrix
    clip: AlignmentByPart
    excluded: Mapping[str, SuccessCount]  # label -> how often it is read as prompted; it is in no rate
