"""The record of a sequence of edits, as sequence.json holds it. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from eval.records.axes import Axis
from eval.records.fields import Count, Difference, OptionalKey, Proportion
from eval.records.rates import CountedRate


@dataclass(frozen=True, kw_only=True)
class RateChange:
    """The later minus the earlier rate, over the images of both (eval.sequence.rate_change)."""

    estimate: Difference
    low: Difference
    high: Difference
    both: Count
    later_only: Count
    earlier_only: Count
    neither: Count
    p: Proportion  # McNemar's
    rebound: OptionalKey[bool] = None  # of a target: whether the whole interval lies below 0
    holm: OptionalKey[Proportion] = None  # of a target: p, adjusted over all changes of the sequence


@dataclass(frozen=True, kw_only=True)
class RequestRate(CountedRate):
    """A rate after a request."""

    request: Count
    change: RateChange | None  # since a target's own request, or since the base


@dataclass(frozen=True, kw_only=True)
class TargetRates:
    """UA of a target after its own request and every later one."""

    axis: Axis
    label: str
    request: Count  # its own
    base: CountedRate | None  # None if it was not judged
    after: tuple[RequestRate, ...]


@dataclass(frozen=True, kw_only=True)
class RetainedRates:
    """The share of images that are still labeled as prompted, among those that no request erases."""

    axis: Axis
    rate: Literal["IRA", "CRA"]
    base: CountedRate
    after: tuple[RequestRate, ...]


@dataclass(frozen=True, kw_only=True)
class SequenceRequest:
    """One request, including what its audits lack."""

    number: Count
    method: str
    concepts: tuple[str, ...]
    edit: str  # digest
    after: tuple[str, ...]  # digests of the edits that it was made on
    audits: tuple[str, ...]  # folders below that of the sequence
    missing: Mapping[str, str]
    crashed: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Rebound:
    """A target whose UA fell since its own request, with its whole interval below 0."""

    label: str
    axis: Axis
    request: Count  # after which it was seen


@dataclass(frozen=True, kw_only=True)
class SequenceSuite:
    """The suite of a sequence."""

    name: str
    file: str | None
    version: Count
    tier: str


@dataclass(frozen=True, kw_only=True)
class SequenceBase:
    """The model that the first request was made on."""

    source: str
    fingerprint: str
    compute: str  # precision


@dataclass(frozen=True, kw_only=True)
class IntervalMethods:
    """How the intervals of a sequence were computed."""

    rate: str
    change: str
    p: str
    level: Proportion


@dataclass(frozen=True, kw_only=True)
class SequenceResult:
    """What a sequence of requests erased and retained (eval.sequence.audit_sequence)."""

    task: Literal["sequence"] = "sequence"
    suite: SequenceSuite
    base: SequenceBase
    methods: IntervalMethods
    requests: tuple[SequenceRequest, ...]
    targets: tuple[TargetRates, ...]
    retained: tuple[RetainedRates, ...]
    rebounds: tuple[Rebound, ...]
