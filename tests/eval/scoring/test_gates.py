"""Gates: three states, decided by the whole interval."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from erasure.errors import UserError
from eval.records import models
from eval.records.attacks import AttackNotRun
from eval.records.audit_result import AuditResult
from eval.records.convert import parse_record, to_record
from eval.records.gates import PAIRED_RATES, Gate, parse_gates
from eval.records.rates import RateName
from eval.report.verdict_summary import describe_gate
from eval.scoring.advice import suggest_next_step
from eval.scoring.attack_rates import count_attack_rates
from eval.scoring.counting import paired_differences
from eval.scoring.gates import EXIT_CODES, decide_verdict, gates_digest
from eval.scoring.rates import counted_rate
from eval.suites.cases import PLAIN_ROLES, REPHRASED_ROLES
from eval.suites.suite import load_suite
from tests.eval.factories import attack_info, audit_counts, audit_result, paired_cells, planted_attack_rows, sample_row

ERASED = Gate(name="erased", rate="UA", at_least=0.9)
RETAINED = Gate(name="retained", rate="IRA", drop_at_most=0.1)


def result(k: int, n: int, table: tuple[int, int, int, int] = (300, 0, 0, 0)) -> AuditResult:
    """An audit in which k of n images are erased and IRA has this paired table."""
    rates = {RateName.UA: counted_rate(k, n), RateName.IRA: counted_rate(1, 1)}
    return audit_result(audit_counts(rates, paired={RateName.IRA: paired_cells(*table)}))


@pytest.mark.parametrize(
    ("k", "n", "state"), [(300, 300, "PASS"), (97, 100, "PASS"), (93, 100, "INCONCLUSIVE"), (9, 9, "INCONCLUSIVE"), (80, 100, "FAIL")]
)
def test_a_rate_passes_only_with_its_whole_interval(k: int, n: int, state: str) -> None:
    decided = decide_verdict([ERASED], result(k, n))
    assert decided.state == decided.gates[0].state == state
    assert (decided.gates[0].images_needed is not None) == (state == "INCONCLUSIVE")


def test_an_interval_on_the_threshold_is_never_a_pass() -> None:
    decided = decide_verdict([ERASED], result(90, 100))
    assert decided.state == "INCONCLUSIVE"
    assert EXIT_CODES[decided.state] == 4
    assert decided.gates[0].images_needed is None  # no number of images decides a share that lies on the threshold


def test_the_number_of_images_that_is_asked_for_decides() -> None:
    (gate,) = decide_verdict([ERASED], result(93, 100)).gates
    n = gate.images_needed
    assert decide_verdict([ERASED], result(round(0.93 * n), n)).state == "PASS"
    assert f"What would decide it: 100 images; about {n:,} are needed" in describe_gate(gate)
    assert f"100 prompts; about {n:,} are needed" in suggest_next_step(replace(gate, rate=RateName.UA_ATTACKED), result(93, 100))


def test_retention_is_shown_and_not_assumed() -> None:
    """Identical labels on a few images do not show that nothing was lost."""
    assert decide_verdict([RETAINED], result(1, 1, (300, 0, 0, 0))).state == "PASS"
    assert decide_verdict([RETAINED], result(1, 1, (8, 0, 0, 0))).state == "INCONCLUSIVE"
    assert decide_verdict([RETAINED], result(1, 1, (200, 0, 100, 0))).state == "FAIL"
    assert decide_verdict([RETAINED], result(1, 1, (280, 20, 0, 0))).state == "PASS"  # it gained


def test_a_gate_on_ipa() -> None:
    (gate,) = parse_gates({"rest": {"rate": "IPA", "drop_at_most": 0.1}}, "suite.yaml")
    verdict = decide_verdict([gate], replace(result(300, 300), paired={RateName.IPA: paired_cells(200, 0, 100, 0)}))
    assert (verdict.state, verdict.gates[0].estimate) == ("FAIL", pytest.approx(1 / 3))


def test_one_failure_fails_all_and_an_unmeasured_gate_is_not_a_pass() -> None:
    assert decide_verdict([ERASED, RETAINED], result(300, 300, (200, 0, 100, 0))).state == "FAIL"
    other = Gate(name="other", rate="CRA", at_least=0.5)
    decided = decide_verdict([ERASED, other], result(300, 300))
    assert decided.state == "INCONCLUSIVE"
    assert decided.unmeasured == ("other",)


@pytest.mark.parametrize(
    ("missing_part", "reason"),
    [
        ({"missing": {"clip": "no file"}}, "INCONCLUSIVE, clip"),
        ({"attacks": (AttackNotRun(**vars(attack_info("soft")), crashed="x"),)}, "INCONCLUSIVE, attack soft"),
    ],
)
def test_nothing_passes_with_a_missing_judge_or_a_crash(missing_part: dict[str, Any], reason: str) -> None:
    decided = decide_verdict([ERASED], replace(result(300, 300), **missing_part))
    assert (decided.state, [gate.state for gate in decided.gates]) == ("INCONCLUSIVE", ["PASS"])
    assert [line.partition(":")[0] for line in decided.withheld] == [reason]
    assert decide_verdict([ERASED], replace(result(80, 100), **missing_part)).state == "FAIL"
    (seeds,) = count_attack_rates(
        planted_attack_rows("seeds", [None]), [attack_info("seeds")], {"0.png": {models.BASE: True, models.ERASED: False}}
    )
    whole = (AttackNotRun(**vars(attack_info("soft")), skipped="x"), seeds)
    assert decide_verdict([ERASED], replace(result(300, 300), attacks=whole)).state == "PASS"


def test_the_rates_with_a_drop_are_the_paired_rates() -> None:
    """The paired table of a fine-grained audit has every rate that a gate can take a drop of, and no other."""
    cells = [("neon", "boat"), ("neon", "tree"), ("sketch", "boat"), ("sketch", "tree")]
    cases = [(role, *cell) for role in (*PLAIN_ROLES, *REPHRASED_ROLES, "neighbor") for cell in cells]
    rows = [
        sample_row(model, style, object_label, ("sketch", "tree"), role=role)
        for model in (models.BASE, models.ERASED)
        for role, style, object_label in cases
    ]
    assert set(paired_differences(rows, "style", ["neon"], [], "boat")) == set(PAIRED_RATES)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], "must map a name"),
        ({"a": {"rate": "UAA", "at_least": 0.9}}, "Did you mean 'UA'"),
        ({"a": {"rate": "UA"}}, "either at_least or drop_at_most"),
        ({"a": {"rate": "UA", "at_least": 90}}, r"\[0, 1\]"),
        ({"a": {"rate": "UA", "at_least": "0.9"}}, r"\[0, 1\]"),
        ({"a": {"rate": "UA", "at_leest": 0.9}}, "Did you mean 'at_least'"),
        ({"a": {"at_least": 0.9}}, "lacks a rate"),
        ({"a": {"rate": "UA", "at_least": 0.9, "tier": "ful"}}, "Did you mean 'full'"),
        ({"a": {"rate": "UA", "at_least": 0.9, "tier": ["full"]}}, "unknown tier of gate 'a'"),
        ({"a": {"rate": "UA_named", "drop_at_most": 0.1}}, "no drop of UA_named is measured"),
    ],
)
def test_gates_are_read_strictly(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_gates(record, "suite.yaml")
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load((Path("prompts") / "pocket.yaml").read_text()), "gates": record}))
    with pytest.raises(UserError, match=message):
        load_suite(str(path))


@pytest.mark.parametrize(
    "fields", [{"at_least": 0}, {"at_least": 0.0}, {"at_least": -0.0}, {"drop_at_most": 1}, {"drop_at_most": 1.0}], ids=str
)
def test_a_gate_that_every_model_passes_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"gate 'a': (at_least 0|drop_at_most 1) is passed by every model; give at_least above 0 or drop"):
        parse_gates({"a": {"rate": "UA", **fields}}, "suite.yaml")


def test_other_thresholds_have_another_digest() -> None:
    easy, hard = (Gate(name="a", rate="UA", at_least=share) for share in (0.5, 1))
    assert gates_digest([easy]) == gates_digest([parse_record(to_record(easy), Gate, "gate")]) != gates_digest([hard])
    assert gates_digest([hard]) == gates_digest([Gate(name="a", rate="UA", at_least=1.0)])
    assert gates_digest([]) != gates_digest([easy]) != gates_digest([easy, hard])
