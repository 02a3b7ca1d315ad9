"""The verdict in sentences: counts of gates, and drops that are rises."""

import pytest

from eval.records.gates import GateDecision, Verdict, VerdictState
from eval.records.rates import RateName
from eval.report.verdict_summary import describe_gate, summarize_verdict


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


def test_a_negative_drop_is_called_a_rise() -> None:
    text = describe_gate(decision("styles", "INCONCLUSIVE", estimate=-0.014, low=-0.0801, high=0.0431))
    assert text == ("INCONCLUSIVE, styles: IRA rose by 1.4 points (a drop of -8.1 to 4.4, n = 20), threshold a drop of at most 5 points.")
    text = describe_gate(decision("styles", "FAIL", estimate=0.2, low=0.1, high=0.3))
    assert "IRA dropped by 20.0 points (a drop of 10.0 to 30.0, n = 20)" in text
