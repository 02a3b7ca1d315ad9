"""junit.xml, read by a parser: what CI systems see of an audit, and that no text of a suite breaks it."""

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from eval.records.attacks import AttackNotRun
from eval.records.audit_result import AuditResult
from eval.records.gates import Gate
from eval.records.models import BASE, ERASED
from eval.records.rates import RateName
from eval.records.report import ReportVerdict
from eval.report.junit import junit_xml
from eval.report.report_json import make_report
from eval.report.verdict_summary import describe_gate
from eval.scoring.attack_rates import count_attack_rates
from eval.scoring.gates import decide_verdict
from eval.scoring.rates import counted_rate
from tests.eval.factories import attack_info, audit_counts, audit_job, audit_result, paired_cells, planted_attack_rows

GATES = (
    Gate(name="erased", rate="UA", at_least=0.9),
    Gate(name="retained", rate="IRA", drop_at_most=0.1),
    Gate(name="neighbors", rate="NRA", at_least=0.5),
    Gate(name="attacked", rate="UA_attacked", at_least=0.5, tier="full"),
    Gate(name="elsewhere", rate="FR", drop_at_most=0.1),
)


def result(k: int = 300, **more: Any) -> AuditResult:
    """An audit in which k of 300 images are erased and all others retained."""
    counts = audit_counts({RateName.UA: counted_rate(k, 300)}, paired={RateName.IRA: paired_cells(300, 0, 0, 0)})
    return audit_result(counts, tier="standard", **more)


def attack_without_figures(name: str, **reason: str) -> AttackNotRun:
    return AttackNotRun(**vars(attack_info(name)), **reason)


def write_and_parse(
    result: AuditResult, gates: tuple[Gate, ...] = GATES, concept: str = "neon"
) -> tuple[bytes, dict[str, tuple[str, str, str]]]:
    """Return the file, and the outcome, type and message of every test case."""
    decided = decide_verdict(gates, result)
    verdict = ReportVerdict(state=decided.state, summary="", reasons=(*map(describe_gate, decided.gates), *decided.withheld))
    report = replace(
        make_report(replace(result, missing={}, attacks=()), ()),
        concept=concept,
        gates=decided.gates,
        verdict=verdict,
        conclusions=(f"Asked for {concept}",),
    )
    content = junit_xml(report, result, gates)
    root = ElementTree.fromstring(content)
    (suite,) = root
    cases = {
        case.get("name") or "": (case[0].tag, case[0].get("type", ""), case[0].get("message", "")) if len(case) else ("", "", "")
        for case in suite.iter("testcase")
    }
    outcomes = [outcome for outcome, _, _ in cases.values()]
    for element in (root, suite):
        assert element.get("tests") == str(len(cases))
        assert [element.get(key) for key in ("failures", "errors", "skipped")] == [
            str(outcomes.count(outcome)) for outcome in ("failure", "error", "skipped")
        ]
    return content, cases


def test_every_gate_is_a_case_and_every_missing_part_is_named() -> None:
    (seeds,) = count_attack_rates(planted_attack_rows("seeds", [None]), [attack_info("seeds")], {"0.png": {BASE: True, ERASED: False}})
    crashed, skipped = "FloatingPointError: x", "no text encoder"
    attacks = (attack_without_figures("soft", crashed=crashed), attack_without_figures("bell", skipped=skipped), seeds)
    _, cases = write_and_parse(result(missing={"clip": "no weights"}, attacks=attacks))
    assert {name: case[:2] for name, case in cases.items()} == {
        "erased": ("", ""),
        "retained": ("", ""),
        "neighbors": ("failure", "inconclusive"),
        "attacked": ("skipped", ""),
        "elsewhere": ("skipped", ""),
        "weights of clip": ("error", "missing"),
        "attack soft": ("error", "crashed"),
        "attack bell": ("skipped", ""),
    }
    messages = {name: case[2] for name, case in cases.items()}
    assert messages["neighbors"] == "INCONCLUSIVE, neighbors: NRA had nothing to measure; the suite has no prompt that it counts."
    assert (messages["attacked"], messages["elsewhere"]) == (
        "This gate applies only in tier full.",
        "This gate applies only with --only.",
    )
    assert (messages["weights of clip"], messages["attack soft"], messages["attack bell"]) == (
        "no weights",
        "FloatingPointError: x",
        "no text encoder",
    )


@pytest.mark.parametrize(("k", "kind"), [(200, "fail"), (273, "inconclusive")])
def test_a_gate_that_fails_or_decides_nothing_is_a_failure(k: int, kind: str) -> None:
    _, cases = write_and_parse(result(k), GATES[:2])
    assert cases["erased"][:2] == ("failure", kind) and cases["erased"][2].startswith(f"{kind.upper()}, erased: UA is ")
    assert cases["retained"] == ("", "", "")


def test_nothing_passes_without_a_verdict() -> None:
    """No gate at all, none in this tier, and fine-grained erasure without a gate on FR."""
    ((outcome, kind, message),) = write_and_parse(result(), ())[1].values()
    assert (outcome, kind) == ("skipped", "") and "sets no gates" in message
    outcome, kind, message = write_and_parse(result(), GATES[3:4])[1]["verdict"]
    assert (outcome, kind) == ("failure", "inconclusive") and "applies to an audit like this one (tier standard" in message
    assert write_and_parse(result(job=audit_job(only="fish", tier="standard")), GATES[:2])[1]["verdict"][:2] == ("failure", "inconclusive")
    assert "verdict" not in write_and_parse(result(), GATES[:2])[1]


def test_hostile_names_are_escaped_and_the_bytes_are_stable() -> None:
    hostile = '"></testcase><failure/>&lol;<!--\x00\x1b\ud800\ufffe\n]]>'
    planted = result(missing={hostile: hostile}, attacks=(attack_without_figures(hostile, crashed=hostile),))
    gate = Gate(name=hostile, rate="UA", at_least=0.9)
    content, cases = write_and_parse(planted, (gate,), hostile)
    clean = hostile[: hostile.index("\x00")] + 4 * "\ufffd" + "\n]]>"
    assert cases == {
        clean: ("", "", ""),
        f"weights of {clean}": ("error", "missing", clean),
        f"attack {clean}": ("error", "crashed", clean),
    }
    assert content == write_and_parse(planted, (gate,), hostile)[0] and content.startswith(b"<?xml version='1.0' encoding='utf-8'?>")
