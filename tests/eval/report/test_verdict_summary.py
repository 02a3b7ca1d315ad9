"""The verdict in sentences: counts of gates, and drops that are rises."""

from dataclasses import replace

import pytest

from eval.records.gates import Gate, GateDecision, Verdict, VerdictState
from eval.records.rates import RateName
from eval.report.verdict_summary import BROUGHT_BACK, STILL_SHOWN, TOO_MUCH_LOST, advise, describe_gate, summarize_verdict
from tests.eval.factories import audit_result


def decision(name: str, state: VerdictState, **fields: float) -> GateDecision:
    values = {"estimate": 0.5, "low": 0.4, "high": 0.6, **fields}
    return GateDecision(
        name=name, rate=RateName.IRA, drop_at_most=0.05, state=state, n=20, method="Newcombe, paired", images_needed=None, **values
    )


def verdict(*states: VerdictState, unmeasured: tuple[str, ...] = (), withheld: tuple[str, ...] = ()) -> Verdict:
    gates = tuple(decision(f"gate{i}", state) for i, state in enumerate(states, 1))
    return Verdict(state="INCONCLUSIVE", gates=gates, unmeasured=unmeasured, withheld=withheld)


@pytest.mark.parametrize(
    ("given", "tier", "expected"),
    [
        (verdict("PASS", "PASS"), "full", "All 2 gates passed."),
        (verdict("PASS", withheld=("an attack crashed",)), "full", "The only gate passed, but the audit is incomplete."),
        (verdict("PASS", "FAIL"), "smoke", "1 of 2 gates failed: gate2."),
        (
            verdict("PASS", "INCONCLUSIVE"),
            "smoke",
            "1 of 2 gates cannot be decided with so few images: gate2. None failed. Tier standard has more images.",
        ),
        (verdict("INCONCLUSIVE"), "full", "1 of 1 gates cannot be decided with so few images: gate1. None failed."),
        (verdict("PASS", unmeasured=("neighbors",)), "smoke", "1 of 2 gates had nothing to measure: neighbors. None failed."),
        (verdict(), "smoke", "No gate applies to this audit, so nothing can pass."),
        (
            verdict("FAIL", "INCONCLUSIVE"),
            "external",
            "1 of 2 gates failed: gate1. 1 of 2 gates cannot be decided with so few images: gate2.",
        ),
    ],
)
def test_the_summary_counts_every_gate_once(given: Verdict, tier: str, expected: str) -> None:
    assert summarize_verdict(given, tier) == expected


def ua_gate(rate: RateName, state: VerdictState) -> GateDecision:
    return replace(decision("erased", state), rate=rate, drop_at_most=None, at_least=0.9)


@pytest.mark.parametrize(
    ("given", "tier", "expected"),
    [
        (verdict("INCONCLUSIVE", "FAIL"), "smoke", TOO_MUCH_LOST),
        (Verdict(state="FAIL", gates=(ua_gate(RateName.UA, "FAIL"),), unmeasured=(), withheld=()), "smoke", STILL_SHOWN),
        (Verdict(state="FAIL", gates=(ua_gate(RateName.UA_ATTACKED, "FAIL"),), unmeasured=(), withheld=()), "full", BROUGHT_BACK),
        (verdict("PASS", "INCONCLUSIVE"), "smoke", "run the same command with --tier standard, which has more images."),
        (verdict("PASS", withheld=("an attack crashed",)), "full", "complete the audit: an attack crashed"),
        (verdict("PASS", unmeasured=("neighbors",)), "smoke", "measure what is missing: neighbors."),
        (verdict(), "smoke", "choose a suite or a tier that has gates, so that something can pass or fail."),
    ],
)
def test_the_next_step_follows_from_the_worst_gate(given: Verdict, tier: str, expected: str) -> None:
    assert advise(given, replace(audit_result(), tier=tier)) == expected


def test_what_passed_without_attacks_is_attacked_next() -> None:
    attacked = (Gate(name="under attack", rate=RateName.UA_ATTACKED, at_least=0.5, tier="full"),)
    assert "--tier full" in advise(verdict("PASS"), replace(audit_result(), gates=attacked))
    assert "No attack was tried" in advise(verdict("PASS"), replace(audit_result(), gates=()))


def test_a_negative_drop_is_called_a_rise() -> None:
    text = describe_gate(decision("styles", "INCONCLUSIVE", estimate=-0.014, low=-0.0801, high=0.0431))
    assert text == ("INCONCLUSIVE, styles: IRA rose by 1.4 points (a drop of -8.1 to 4.4, n = 20), threshold a drop of at most 5 points.")
    text = describe_gate(decision("styles", "FAIL", estimate=0.2, low=0.1, high=0.3))
    assert "IRA dropped by 20.0 points (a drop of 10.0 to 30.0, n = 20)" in text
