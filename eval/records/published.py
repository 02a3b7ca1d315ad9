"""Figures as a published protocol counts them, each beside the corrected one (eval.scoring.published). Imports no torch."""

from dataclasses import dataclass

from eval.records.fields import Count, FiniteNumber, OptionalKey


@dataclass(frozen=True, kw_only=True)
class PublishedRate:
    """k of n as the protocol counts them."""

    k: Count
    n: Count
    estimate: FiniteNumber


@dataclass(frozen=True, kw_only=True)
class CorrectedFigure:
    """The corrected counterpart of a published figure, with its interval; k and n if it is a rate."""

    estimate: FiniteNumber
    low: FiniteNumber
    high: FiniteNumber
    k: OptionalKey[Count] = None
    n: OptionalKey[Count] = None
    effective: OptionalKey[FiniteNumber] = None


@dataclass(frozen=True, kw_only=True)
class PublishedFigure:
    """One figure of a protocol beside the corrected one."""

    figure: str
    published: PublishedRate | None
    corrected: CorrectedFigure | None  # None if it is unknown
    is_difference: bool  # whether the corrected figure is a difference of rates
    method: str  # of the interval; empty without one
    caveat: str  # what the published figure hides


@dataclass(frozen=True, kw_only=True)
class PublishedFigures:
    """The figures of a protocol."""

    protocol: str
    figures: tuple[PublishedFigure, ...]
