"""Gates -> a verdict with three states. Imports no torch.

A gate passes if its whole interval lies on the good side of the threshold, fails if the whole interval lies on the bad side, and is
inconclusive otherwise: there are too few images to decide.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from erasure.storage.files import canonical_json
from eval.records.audit_result import AuditResult
from eval.records.convert import to_record
from eval.records.gates import Gate, GateDecision, Verdict, VerdictState
from eval.records.rates import CountedRate, PairedDifference, RateName
from eval.scoring.advice import explain_unmeasured, suggest_next_step
from eval.scoring.rates import method_of
from eval.stats.intervals import Interval, paired_difference, rate_interval

EXIT_CODES: dict[VerdictState, int] = {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}
EXIT_INCOMPLETE = 2
EXIT_CODES_WORST_FIRST = (3, EXIT_INCOMPLETE, 4)  # of several exit codes, the first of these is reported
INCONCLUSIVE: VerdictState = "INCONCLUSIVE"
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


def applies_to(gate: Gate, result: AuditResult) -> bool:
    """Return whether a gate applies to an audit."""
    return (not gate.tier or gate.tier == result.tier) and (gate.rate is not RateName.FR or bool(result.job.only))


def decide_gate(gate: Gate, rates: Mapping[RateName, CountedRate], paired: Mapping[RateName, PairedDifference]) -> GateDecision | None:
    """Return a gate's state with its evidence; None if nothing was measured.

    Args:
        rates: of the erased model.
        paired: of the erased model and the base.
    """
    if gate.at_least is not None:
        return _decide_rate(gate, gate.at_least, rates[gate.rate]) if gate.rate in rates else None
    return _decide_drop(gate, gate.drop_at_most or 0.0, paired[gate.rate]) if gate.rate in paired else None


def _decide_rate(gate: Gate, limit: float, rate: CountedRate) -> GateDecision:
    k, n = rate.k, rate.n
    effective_share = 1.0 if rate.effective is None else rate.effective / n  # below 1 if a prompt has several images
    interval = rate_interval(k, n, rate.effective)
    state: VerdictState = "PASS" if interval.low >= limit else "FAIL" if interval.high < limit else "INCONCLUSIVE"
    needed = _images_needed(n, lambda m: _is_decisive(rate_interval(round(k / n * m), m, effective_share * m), limit))
    return _decision(gate, state, interval, n, method_of(rate), needed)


def _decide_drop(gate: Gate, limit: float, pair: PairedDifference) -> GateDecision:
    n, table = pair.n, (pair.both, pair.base_only, pair.erased_only, pair.neither)
    interval = paired_difference(*table)
    state: VerdictState = "PASS" if interval.high <= limit else "FAIL" if interval.low > limit else "INCONCLUSIVE"
    needed = _images_needed(n, lambda m: _is_decisive(paired_difference(*(round(c / n * m) for c in table)), limit))
    return _decision(gate, state, interval, n, "Newcombe, paired", needed)


def _decision(gate: Gate, state: VerdictState, interval: Interval, n: int, method: str, needed: int | None) -> GateDecision:
    return GateDecision(
        name=gate.name,
        rate=gate.rate,
        at_least=gate.at_least,
        drop_at_most=gate.drop_at_most,
        tier=gate.tier,
        state=state,
        estimate=interval.estimate,
        low=interval.low,
        high=interval.high,
        n=n,
        method=method,
        images_needed=needed if state == INCONCLUSIVE else None,
    )


def _is_decisive(interval: Interval, limit: float) -> bool:
    return interval.low > limit or interval.high < limit


def _images_needed(n: int, decides: Callable[[int], bool]) -> int | None:
    """Return about how many images would decide at the same rates; None if the estimate lies on the threshold."""
    while n <= MAX_ADVISED_IMAGES:
        n = int(n * 1.1) + 1
        if decides(n):
            return n
    return None


def gates_digest(gates: Sequence[Gate], excluded: Sequence[str] | None = None) -> str:
    """Return a digest of thresholds, which distinguishes reports of the same evidence.

    Args:
        excluded: labels that another suite excludes, which changes rates as gates change thresholds; None: the audit's own.
    """
    records = [*map(to_record, gates), *([{"excluded": list(excluded)}] if excluded is not None else [])]
    return hashlib.sha256(canonical_json(records).encode()).hexdigest()[:16]


def decide_verdict(gates: Sequence[Gate], result: AuditResult) -> Verdict:
    """Return the state of every gate and of all together: FAIL if one fails, PASS only if all pass and nothing is withheld."""
    rates = result.erased.rates if result.erased else {}
    decisions: list[GateDecision] = []
    unmeasured: list[str] = []
    for gate in (gate for gate in gates if applies_to(gate, result)):
        decision = decide_gate(gate, rates, result.paired)
        if decision is None:
            unmeasured.append(gate.name)
        else:
            is_open = decision.state == INCONCLUSIVE
            decisions.append(replace(decision, next_step=suggest_next_step(decision, result) if is_open else ""))
    states, reasons = [decision.state for decision in decisions], withheld_reasons(gates, result)
    state: VerdictState = "INCONCLUSIVE"
    if "FAIL" in states:
        state = "FAIL"
    elif states and not reasons and not unmeasured and all(s == "PASS" for s in states):
        state = "PASS"
    return Verdict(state=state, gates=tuple(decisions), unmeasured=tuple(unmeasured), withheld=tuple(reasons))


def withheld_reasons(gates: Sequence[Gate], result: AuditResult) -> list[str]:
    """List the reasons why an audit cannot pass whatever its gates say: weights are missing, an attack crashed, it lacks a gate on FR,
    or no gate applies."""
    reasons = [
        *map(NO_WEIGHTS.format, result.missing),
        *map(CRASHED.format, result.crashes),
        *[NO_FR_GATE] * lacks_fr_gate(gates, result),
    ]
    if not gates:
        reasons.append(NO_GATES.format(result.job.suite))
    elif not any(applies_to(gate, result) for gate in gates):
        reasons.append(NONE_APPLIES.format(result.job.suite, result.tier, "" if result.job.only else ", without --only"))
    return reasons


def unmeasured_reasons(gates: Sequence[Gate], result: AuditResult, names: Sequence[str]) -> list[str]:
    """List the reasons why gates had nothing to measure.

    Args:
        names: names of those gates (`decide_verdict`).
    """
    selected = [gate for gate in gates if gate.name in names]
    return [UNMEASURED.format(g.name, g.rate, explain_unmeasured(g.rate, g.drop_at_most is not None, result)) for g in selected]


def exit_code_of(state: VerdictState, result: AuditResult) -> int:
    """Return the exit code of an audit: 2 if a requested part is missing, otherwise that of its verdict."""
    return EXIT_INCOMPLETE if result.missing or result.crashes else EXIT_CODES[state]


def lacks_fr_gate(gates: Sequence[Gate], result: AuditResult) -> bool:
    """Return whether an audit of one cell (`--only`) has gates, but none on the concept elsewhere, which may be lost as well."""
    return bool(gates and result.job.only) and not any(gate.rate is RateName.FR and applies_to(gate, result) for gate in gates)
