"""Gates: thresholds set in advance, and a verdict with three states. Imports no torch.

A gate passes if its whole interval lies on the good side of the threshold, fails if the whole interval lies on the bad side, and is
inconclusive otherwise: there are too few images to decide.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from erasure.errors import UserError, unknown_value_error
from erasure.storage.files import canonical_json
from eval.scoring.advice import explain_unmeasured, suggest_next_step
from eval.scoring.rates import method_of, rate_interval
from eval.stats.intervals import Interval, paired_difference

VerdictState = Literal["PASS", "FAIL", "INCONCLUSIVE"]
EXIT_CODES: dict[VerdictState, int] = {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}
EXIT_INCOMPLETE = 2
EXIT_CODES_WORST_FIRST = (3, EXIT_INCOMPLETE, 4)  # of several exit codes, the first of these is reported
INCONCLUSIVE: VerdictState = "INCONCLUSIVE"
RATES = ("UA", "UA_shown", "UA_named", "UA_described", "UA_perturbed", "UA_replayed", "UA_attacked", "FR", "IRA", "CRA", "NRA", "IPA")
# rates with a drop from the base (eval.scoring.counting.paired_differences)
PAIRED_RATES = ("UA", "FR", "IRA", "CRA", "NRA", "IPA")
Tier = Literal["smoke", "standard", "full"]
TIERS: tuple[Tier, ...] = get_args(Tier)
GATE_KEYS = ("rate", "at_least", "drop_at_most", "tier")
MAX_ADVISED_IMAGES = 1_000_000  # images beyond which no number is recommended
NO_GATES = (
    "INCONCLUSIVE, no verdict: suite {} sets no gates; `erasure audit report DIR --suite FILE.yaml` decides by the gates of another file."
)
NONE_APPLIES = "INCONCLUSIVE, no verdict: no gate of suite {} applies to an audit like this one (tier {}{})."
UNMEASURED = "INCONCLUSIVE, {}: {} had nothing to measure; {}."
NO_FR_GATE = (
    "INCONCLUSIVE, retained elsewhere: the suite has no gate on FR, and a model that lost the concept everywhere would pass the others."
)
NO_WEIGHTS = "INCONCLUSIVE, {}: the weights to measure it are missing, so nothing that needs it was counted."
CRASHED = "INCONCLUSIVE, attack {}: it crashed, which is neither a success nor a failure; the same command tries it again."


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
    rate: str  # one of RATES
    at_least: float | None = None  # threshold of the erased model's rate
    drop_at_most: float | None = None  # threshold of the fall from base to erased, for a rate in PAIRED_RATES
    tier: str = ""  # the only one of TIERS in which the gate applies; empty: all

    def __post_init__(self) -> None:
        if self.rate not in RATES:
            raise unknown_value_error(f"rate of gate {self.name!r}", self.rate, RATES)
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

    def applies_to(self, result: Mapping[str, Any]) -> bool:
        """Return whether the gate applies to an audit."""
        return (not self.tier or self.tier == result["tier"]) and (self.rate != "FR" or bool(only_of(result)))

    def decide(self, rates: Mapping[str, Any], paired: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the gate's state with its evidence; None if nothing was measured.

        Args:
            rates: of the erased model; each has k, n and perhaps `effective`.
            paired: by rate the paired table: both, erased_only, base_only, neither.

        Returns:
            The gate's fields, state, estimate, low, high, n, method, and images_needed (None if decided or unknown).
        """
        if self.rate not in (rates if self.at_least is not None else paired):
            return None
        if self.at_least is not None:
            rate, limit = rates[self.rate], self.at_least
            k, n = rate["k"], rate["n"]
            effective_share = rate.get("effective", n) / n  # below 1 if a prompt has several images
            interval, method = rate_interval(k, n, rate.get("effective")), method_of(rate)
            state: VerdictState = "PASS" if interval.low >= limit else "FAIL" if interval.high < limit else "INCONCLUSIVE"
            needed = _images_needed(n, lambda m: _is_decisive(rate_interval(round(k / n * m), m, effective_share * m), limit))
        else:
            table, limit = [paired[self.rate][name] for name in ("both", "base_only", "erased_only", "neither")], self.drop_at_most or 0.0
            n, interval, method = sum(table), paired_difference(*table), "Newcombe, paired"
            state = "PASS" if interval.high <= limit else "FAIL" if interval.low > limit else "INCONCLUSIVE"
            needed = _images_needed(n, lambda m: _is_decisive(paired_difference(*(round(c / n * m) for c in table)), limit))
        return {
            **asdict(self),
            "state": state,
            **interval._asdict(),
            "n": n,
            "method": method,
            "images_needed": needed if state == INCONCLUSIVE else None,
        }


def gates_digest(gates: Sequence[Gate | Mapping[str, Any]]) -> str:
    """Return a digest of thresholds, which distinguishes reports of the same evidence."""
    records = [asdict(gate) if isinstance(gate, Gate) else dict(gate) for gate in gates]
    records = [{key: float(value) if isinstance(value, int) else value for key, value in record.items()} for record in records]
    return hashlib.sha256(canonical_json(records).encode()).hexdigest()[:16]


def only_of(result: Mapping[str, Any]) -> str:
    """Return the label that an audit's concept should be erased on alone (eval.suites.fine_grained); empty for everywhere."""
    label: str = result.get("job", {}).get("only", "")
    return label


def _is_decisive(interval: Interval, limit: float) -> bool:
    return interval.low > limit or interval.high < limit


def _images_needed(n: int, decides: Callable[[int], bool]) -> int | None:
    """Return about how many images would decide at the same rates; None if the estimate lies on the threshold."""
    while n <= MAX_ADVISED_IMAGES:
        n = int(n * 1.1) + 1
        if decides(n):
            return n
    return None


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


def decide_verdict(gates: Sequence[Gate], result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of every gate and of all together: FAIL if one fails, PASS only if all pass and nothing is withheld.

    Args:
        result: an audit's result.json.

    Returns:
        state, gates (decided ones), unmeasured (names of gates), withheld (reasons).
    """
    rates, decisions, unmeasured_gates = result["models"].get("erased", {"rates": {}})["rates"], [], []
    for gate in (gate for gate in gates if gate.applies_to(result)):
        decision = gate.decide(rates, result["paired"])
        if decision is None:
            unmeasured_gates.append(gate.name)
        else:
            decisions.append({**decision, "next_step": suggest_next_step(decision, result) if decision["state"] == INCONCLUSIVE else ""})
    states, reasons = [gate["state"] for gate in decisions], withheld_reasons(gates, result)
    if "FAIL" in states:
        state: VerdictState = "FAIL"
    else:
        state = "PASS" if states and not reasons and not unmeasured_gates and all(s == "PASS" for s in states) else "INCONCLUSIVE"
    return {"state": state, "gates": decisions, "unmeasured": unmeasured_gates, "withheld": reasons}


def withheld_reasons(gates: Sequence[Gate], result: Mapping[str, Any]) -> list[str]:
    """List the reasons why an audit cannot pass whatever its gates say: weights are missing, an attack crashed, it lacks a gate on FR,
    or no gate applies."""
    crashed = [attack["name"] for attack in result.get("attacks", ()) if "crashed" in attack]
    reasons = [
        *map(NO_WEIGHTS.format, result.get("missing", ())),
        *map(CRASHED.format, crashed),
        *[NO_FR_GATE] * lacks_fr_gate(gates, result),
    ]
    suite = result.get("job", {}).get("suite", "")
    if not gates:
        reasons.append(NO_GATES.format(suite))
    elif not any(gate.applies_to(result) for gate in gates):
        reasons.append(NONE_APPLIES.format(suite, result["tier"], "" if only_of(result) else ", without --only"))
    return reasons


def unmeasured_reasons(gates: Sequence[Gate], result: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """List the reasons why gates had nothing to measure.

    Args:
        names: names of those gates (`decide_verdict`).
    """
    selected = [gate for gate in gates if gate.name in names]
    return [UNMEASURED.format(g.name, g.rate, explain_unmeasured(g.rate, g.drop_at_most is not None, result)) for g in selected]


def exit_code_of(state: VerdictState, result: Mapping[str, Any]) -> int:
    """Return the exit code of an audit: 2 if a requested part is missing, otherwise that of its verdict."""
    if result["missing"] or any("crashed" in attack for attack in result["attacks"]):
        return EXIT_INCOMPLETE
    return EXIT_CODES[state]


def lacks_fr_gate(gates: Sequence[Gate], result: Mapping[str, Any]) -> bool:
    """Return whether an audit of one cell (`--only`) has gates, but none on the concept elsewhere, which may be lost as well."""
    return bool(gates and only_of(result)) and not any(gate.rate == "FR" and gate.applies_to(result) for gate in gates)
