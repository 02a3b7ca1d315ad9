"""Gates: thresholds set in advance, and what an audit decided about them. Imports no torch."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from erasure.errors import UserError, unknown_value_error
from eval.records.fields import Count, Difference, Proportion
from eval.records.rates import RateName
from eval.stats.intervals import Interval

VerdictState = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Tier = Literal["smoke", "standard", "full"]
TIERS: tuple[Tier, ...] = get_args(Tier)
RATES = tuple(name for name in RateName if name is not RateName.CRA_INCLUDED)  # of gates
# rates with a drop from the base (eval.scoring.counting.paired_differences)
PAIRED_RATES = (RateName.UA, RateName.FR, RateName.IRA, RateName.CRA, RateName.NRA, RateName.IPA)

GATE_KEYS = ("rate", "at_least", "drop_at_most", "tier")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One threshold of a suite. A rate has the interval of eval.scoring.rates; a drop is base minus erased on the same noise (Newcombe).

    A drop is a test of non-inferiority: finding no significant difference does not show that something was retained. A gate on FR applies
    only to audits of one cell (`--only`), since no others have that rate.

    Raises:
        UserError: an unknown rate or tier; not exactly one threshold, or one that is outside [0, 1] or passed by every model; or a drop
            of a rate that is not in PAIRED_RATES.
    """

    name: str
    rate: RateName  # one of RATES, or its text
    at_least: Proportion | None = None  # threshold of the erased model's rate
    drop_at_most: Proportion | None = None  # threshold of the fall from base to erased, for a rate in PAIRED_RATES
    tier: str = ""  # the only one of TIERS in which the gate applies; empty: all

    def __post_init__(self) -> None:
        if self.rate not in RATES:
            raise unknown_value_error(f"rate of gate {self.name!r}", self.rate, map(str, RATES))
        object.__setattr__(self, "rate", RateName(self.rate))
        thresholds = [value for value in (self.at_least, self.drop_at_most) if value is not None]
        if (
            len(thresholds) != 1
            or isinstance(thresholds[0], bool)
            or not isinstance(thresholds[0], int | float)
            or not 0 <= thresholds[0] <= 1
        ):
            raise UserError(f"gate {self.name!r} needs either at_least or drop_at_most, a share in [0, 1]; got {thresholds}.")
        if self.at_least == 0 or self.drop_at_most == 1:
            threshold = "at_least 0" if self.at_least == 0 else "drop_at_most 1"
            raise UserError(f"gate {self.name!r}: {threshold} is passed by every model; give at_least above 0 or drop_at_most below 1.")
        if self.drop_at_most is not None and self.rate not in PAIRED_RATES:
            raise UserError(f"gate {self.name!r}: no drop of {self.rate} is measured, only of {', '.join(PAIRED_RATES)}; give at_least.")
        if self.tier not in ("", *TIERS):
            raise unknown_value_error(f"tier of gate {self.name!r}", self.tier, TIERS)


@dataclass(frozen=True, kw_only=True)
class GateDecision(Gate):
    """The state of a gate with its evidence (eval.scoring.gates.decide_gate)."""

    state: VerdictState
    estimate: Difference
    low: Difference
    high: Difference
    n: Count
    method: str  # of the interval
    images_needed: Count | None  # about how many would decide; None if decided or unknown
    next_step: str = ""  # what would decide an open gate; empty if decided

    @property
    def interval(self) -> Interval:
        return Interval(self.estimate, self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The state of all gates together, and of each."""

    state: VerdictState
    gates: tuple[GateDecision, ...]  # decided ones
    unmeasured: tuple[str, ...]  # names of gates that had nothing to measure
    withheld: tuple[str, ...]  # reasons why the audit cannot pass whatever its gates say


def parse_gates(record: Any, source: str) -> tuple[Gate, ...]:
    """Parse the gates of a suite file.

    Args:
        record: the value of `gates`.
        source: the file, for error messages.

    Raises:
        UserError: it is not a mapping of mappings; a key is unknown; a rate is missing; or a gate is invalid (`Gate`).
    """
    if not isinstance(record, dict) or not all(isinstance(fields, dict) for fields in record.values()):
        raise UserError(f"{source}: gates must map a name to rate and threshold, such as erased: {{rate: UA, at_least: 0.9}}.")
    for name, fields in record.items():
        for key in fields:
            if key not in GATE_KEYS:
                raise unknown_value_error(f"key of gate {name!r} in {source}", str(key), GATE_KEYS)
        if "rate" not in fields:
            raise UserError(f"{source}: gate {name!r} lacks a rate ({', '.join(RATES)}).")
    return tuple(Gate(name=str(name), **fields) for name, fields in record.items())


def gate_faults(record: Any, source: str) -> list[str]:
    """List the faults in the gates of a suite file, at most one per gate."""
    if not isinstance(record, dict):
        return [] if record is None else [_gate_fault(record, source)]
    return [fault for name, fields in record.items() if (fault := _gate_fault({name: fields}, source))]


def _gate_fault(record: Any, source: str) -> str:
    try:
        parse_gates(record, source)
    except UserError as error:
        return str(error)
    return ""
