"""Fine-grained erasure, of a concept in one cell: which prompts are used, what planted labels count, and what the report says."""

import json
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from app.commands.audit_report import format_headline
from app.jobs.leaderboard import load_rows
from erasure.concept import Concept
from erasure.edits import Edit
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from eval.auditing.plan import AuditPlan
from eval.auditing.run import audit_plan
from eval.comparison import tabulate_comparison
from eval.metrics.unlearn_canvas import UnlearnCanvasRates
from eval.records.audit_result import AuditResult
from eval.records.convert import to_record
from eval.records.gates import Gate
from eval.records.models import BASE, ERASED
from eval.records.rates import RateName
from eval.records.result_files import read_result
from eval.records.rows import SampleRow
from eval.report.commands import audit_command
from eval.report.html import write_report
from eval.report.report_json import SCHEMA
from eval.requests import default_audit_folder
from eval.scoring.counting import count_rates, paired_differences
from eval.scoring.gates import decide_verdict
from eval.scoring.rates import counted_rate
from eval.scoring.recount import load_sample_rows, recount
from eval.suites.fine_grained import describe_only, find_only_label
from eval.suites.formats import SuiteAttacks, parse_attacks
from eval.suites.list_reader import ListedPrompt
from eval.suites.suite import load_suite
from tests.eval.factories import audit_counts, audit_job, audit_result, label_scores, paired_cells, sample_row
from tests.factories import erase_on_small_latents, small_suite
from tests.planted import replace_samples

STYLES, OBJECTS = ["plain", "neon", "sketch", "none"], ["boat", "tree", "fish", "none"]


def planted_rates() -> UnlearnCanvasRates:
    """Neon was to be erased on the boat: erased there 3 of 4 times, retained elsewhere 4 of 7 times; sketch retained 2 of 3 times."""
    metric = UnlearnCanvasRates(STYLES, OBJECTS, ["neon"], ["plain"], "boat")
    metric.update([("neon", "boat")] * 4, [("sketch", "tree"), ("none", "boat"), ("plain", "tree"), ("neon", "boat")])
    metric.update([("neon", "tree")] * 5, [("neon", "tree")] * 2 + [("neon", "fish"), ("sketch", "tree"), ("none", "none")])
    metric.update([("neon", "fish")] * 2, [("neon", "fish"), ("plain", "fish")])
    metric.update([("sketch", "boat")] * 2 + [("sketch", "tree")], [("sketch", "boat"), ("neon", "boat"), ("sketch", "fish")])
    metric.update([("plain", "boat")], [("neon", "tree")])
    return metric


def test_rates_of_planted_labels() -> None:
    """CRA: 3 of 5 neon trees, 2 of 2 neon fish, 2 of 3 sketches, none of the plain ones; CRA_included adds the neon boats (2 of 4)."""
    rates = {name: tuple(rate) for name, rate in planted_rates().compute().items()}
    assert rates == {"UA": (3, 4), "IPA": (2, 4), "FR": (4, 7), "IRA": (2, 3), "CRA": (7, 11), "CRA_included": (9, 15)}


def test_the_confusion_of_the_target_is_of_the_cell_alone() -> None:
    assert planted_rates().confusion()[1].tolist() == [1, 1, 1, 1]
    assert planted_rates().confusion()[2].tolist() == [0, 1, 2, 0]


def test_an_unknown_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="moat"):
        UnlearnCanvasRates(STYLES, OBJECTS, ["neon"], only="moat")


def test_pairs_of_planted_labels() -> None:
    """Neon boats: erased in 2 of 2. Neon trees: neon in base 3 of 3, in erased 1 of 3, and one tree lost. A sketch: unchanged."""
    rows = [
        sample_row(model, "neon", "boat", labels, index=i)
        for model, labels in ((BASE, ("neon", "boat")), (ERASED, ("plain", "none")))
        for i in (0, 1)
    ]
    rows += [sample_row(BASE, "neon", "tree", ("neon", "tree"), index=i) for i in range(3)]
    labels_of_trees = (("neon", "tree"), ("plain", "tree"), ("none", "boat"))
    rows += [sample_row(ERASED, "neon", "tree", labels, index=i) for i, labels in enumerate(labels_of_trees)]
    rows += [sample_row(model, "sketch", "boat", ("sketch", "boat")) for model in (BASE, ERASED)]

    def cells(only: str) -> dict[str, list[int]]:
        tables = paired_differences(rows, "style", ["neon"], ["plain"], only)
        return {name: [table.both, table.erased_only, table.base_only, table.neither] for name, table in tables.items()}

    assert cells("boat") == {"UA": [0, 2, 0, 0], "FR": [1, 0, 2, 0], "IRA": [1, 0, 0, 0], "CRA": [3, 0, 1, 0], "IPA": [0, 0, 2, 0]}
    assert cells("") == {"UA": [0, 4, 0, 1], "IRA": [1, 0, 0, 0], "CRA": [1, 0, 0, 0], "IPA": [2, 0, 3, 0]}


def test_the_cell_is_named_by_label_or_phrase() -> None:
    suite = load_suite("pocket")
    assert find_only_label(suite, ["style"], "Fish") == find_only_label(suite, ["style"], "a fish") == "fish"
    assert find_only_label(suite, ["object"], "pixel art") == "pixel"
    assert find_only_label(suite, ["style", "object"], "") == ""
    with pytest.raises(UserError, match=r"unknown object for --only in suite pocket 'fisch'. Did you mean 'fish'"):
        find_only_label(suite, ["style"], "fisch")
    with pytest.raises(UserError, match="unknown object for --only"):
        find_only_label(suite, ["style"], "sketch")
    with pytest.raises(UserError, match="these erase both"):
        find_only_label(suite, ["style", "object"], "fish")


def count_samples(plan: AuditPlan) -> dict[str, Counter[tuple[str, str]]]:
    """Count the images of a plan by role and cell."""
    counts: dict[str, Counter[tuple[str, str]]] = {}
    for sample in plan.samples:
        counts.setdefault(sample.case.role, Counter())[sample.case.style, sample.case.object] += 1
    return counts


@pytest.mark.parametrize(("axis", "target", "only"), [("style", "neon", "fish"), ("object", "fish", "neon")])
def test_one_cell_gets_as_many_images_as_all_cells_of_a_target(axis: Any, target: str, only: str) -> None:
    suite = load_suite("pocket")
    suite, replay = replace(suite, neighbors={target: ("glow", "shine")}, benign=("a bowl of soup",)), (ListedPrompt("bright", "1"),)
    whole, fine = (AuditPlan(suite, "standard", axis, (target,), replay_prompts=replay, only=cell) for cell in ("", only))
    whole_counts, fine_counts, cell = count_samples(whole), count_samples(fine), ("neon", "fish")
    assert cell in fine_counts["grid"] and set(fine_counts["grid"]) == set(whole_counts["grid"])
    assert fine_counts["grid"][cell] == sum(n for key, n in whole_counts["grid"].items() if target in key) >= 150
    others = [{key: n for key, n in counts["grid"].items() if key != cell} for counts in (fine_counts, whole_counts)]
    assert others[0] == others[1]
    assert fine_counts["benign"] == whole_counts["benign"] == {("", ""): 1}
    for role in ("named", "described", "perturbed", "replayed"):
        assert fine_counts[role] == {cell: whole_counts[role].total()}
    assert fine_counts["neighbor"].total() == whole_counts["neighbor"].total()
    assert {key[axis == "style"] for key in fine_counts["neighbor"]} == {only}
    seeds = {sample.file_name: sample.seed for sample in whole.samples if sample.case.role == "grid"}
    # the same seeds, so that the cache has the images of another audit
    assert {sample.file_name: sample.seed for sample in fine.samples if sample.file_name in seeds} == seeds


def planted_result(k: int, fr: tuple[int, int, int, int] | None, only: str) -> AuditResult:
    """An audit in which k of 300 images of the cell are erased, the kind is retained, and FR has this paired table."""
    tables = {RateName.IRA: (300, 0, 0, 0), **({RateName.FR: fr} if fr else {})}
    rates = {RateName.UA: counted_rate(k, 300), RateName.IRA: counted_rate(300, 300)}
    counts = audit_counts(rates, paired={name: paired_cells(*table) for name, table in tables.items()})
    return audit_result(counts, job=audit_job(tier="standard", only=only))


def test_an_erasure_everywhere_does_not_pass_as_fine_grained() -> None:
    erased, retained = Gate(name="erased", rate="UA", at_least=0.9), Gate(name="retained", rate="IRA", drop_at_most=0.1)
    elsewhere = Gate(name="elsewhere", rate="FR", drop_at_most=0.1)
    fine, everywhere = planted_result(300, (300, 0, 0, 0), "fish"), planted_result(300, (0, 0, 300, 0), "fish")
    assert decide_verdict([erased, retained, elsewhere], fine).state == "PASS"
    assert decide_verdict([erased, retained, elsewhere], everywhere).state == "FAIL"
    assert decide_verdict([erased, retained], fine).state == decide_verdict([erased, retained], everywhere).state == "INCONCLUSIVE"
    assert decide_verdict([erased, retained, replace(elsewhere, tier="full")], fine).state == "INCONCLUSIVE"
    assert decide_verdict([erased, retained, elsewhere], planted_result(300, None, "fish")).unmeasured == ("elsewhere",)
    plain = decide_verdict([erased, retained, elsewhere], planted_result(300, None, ""))  # FR is not measured for an erasure everywhere
    assert (plain.state, plain.unmeasured, len(plain.gates)) == ("PASS", (), 2)


@pytest.mark.parametrize("name", ["pocket", "sd"])
def test_shipped_suites_have_a_gate_on_fr(name: str) -> None:
    assert [gate.drop_at_most for gate in load_suite(name).gates if gate.rate == "FR"] == [0.1]


ATTACKS = {"seed_search": {}, "soft_prefix": {"tokens": 2, "steps": 2, "batch": 2}}


def fine_grained_plan(edit: Edit) -> AuditPlan:
    suite = replace(small_suite(), attacks=SuiteAttacks(tiers=("smoke",), prompts=7, images=1, fresh_images=1, use=parse_attacks(ATTACKS)))
    (plan,) = AuditPlan.for_edits([edit], suite, "smoke", only="a boat")
    return plan


def test_an_audit_of_one_cell(pocket_sized_model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase_on_small_latents(pocket_sized_model, [Concept(name="neon", kind="style")], tmp_path / "edit")
    plan, out = fine_grained_plan(edit), tmp_path / "edit" / "audit"
    result = audit_plan(pocket_sized_model, [edit], plan, out)
    assert result.job.only == "boat"
    (whole,) = AuditPlan.for_edits([edit], small_suite(), "smoke")
    assert "only" not in to_record(audit_plan(pocket_sized_model, [edit], whole, tmp_path / "edit" / "whole").job)
    sizes = {name: rate.n for name, rate in result.models[ERASED].rates.items()}
    assert sizes == {"UA": 6, "UA_named": 4, "UA_described": 4, "UA_attacked": 7, "FR": 3, "IRA": 2, "CRA": 7, "IPA": 6, "CRA_included": 13}
    attacks = [json.loads(line) for line in (out / "attacks" / "attacks.jsonl").read_text().splitlines()]
    assert len(attacks) == 14 and not [row for row in attacks if "crashed" in row or "skipped" in row]
    assert all(row["image"].startswith("neon-boat-") for row in attacks)
    assert len({row["prompt"] for row in attacks}) == 5 < 7  # prompts repeat, with other noise
    assert result.paired[RateName.FR].n == 3
    assert result.image_set_distances.parts["target"][ERASED].kid.all.n == (6, 6)
    assert to_record(recount(out, plan.suite)) == to_record(result)
    assert "FR " in format_headline(result)
    with pytest.raises(UserError, match="only is boat in the first and  in the second"):
        tabulate_comparison(out, tmp_path / "edit" / "whole")
    assert [line.split(" | ")[0] for line in tabulate_comparison(out, out)[2:]] == ["| UA", "| FR", "| IRA", "| CRA", "| IPA"]
    check_report(out, result, plan)


def check_report(out: Path, result: AuditResult, plan: AuditPlan) -> None:
    """Check the report of a fine-grained audit, with and without a gate on FR."""
    page = write_report(out, result, plan.suite.gates).read_text()
    report = json.loads((out / "report.json").read_text())
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    assert report["only"] == "boat" and report["conclusions"][0].startswith("Asked for “neon” on “boat”, the erased model shows it in ")
    assert any(
        line.startswith("The concept elsewhere, where it should be retained: labeled as prompted in ") for line in report["conclusions"]
    )
    assert [rate["name"] for rate in report["rates"]][-5:] == ["FR", "IRA", "CRA", "IPA", "CRA_included"]
    assert [gate["rate"] for gate in report["gates"]].count("FR") == 1
    assert "Erasing “neon” only on “boat”" in page and "lost elsewhere" in page and "the concept elsewhere" in page
    assert shlex.split(audit_command(out, result))[-2:] == ["--only", "boat"]
    page = write_report(out, result, [gate for gate in plan.suite.gates if gate.rate != "FR"]).read_text()
    assert "the suite has no gate on FR" in page
    without = json.loads((out / "report.json").read_text())
    assert without["verdict"]["reasons"][-1].startswith("INCONCLUSIVE, retained elsewhere: the suite has no gate on FR")
    assert [e.concepts for e in load_rows(out)] == ["neon only on “boat”"]


def test_a_concept_that_is_retained_elsewhere_is_counted(pocket_sized_model: StableDiffusion, tmp_path: Path) -> None:
    """The rows of a real audit with planted labels: neon is erased on the boat and retained in two of three trees."""
    edit = erase_on_small_latents(pocket_sized_model, [Concept(name="neon", kind="style")], tmp_path / "edit")
    (plan,) = AuditPlan.for_edits([edit], small_suite(), "smoke", only="boat")
    audit_plan(pocket_sized_model, [edit], plan, tmp_path / "audit")

    def is_erased(row: SampleRow) -> bool:
        return row.model == ERASED and row.style == "neon" and (row.object == "boat" or row.index == 0)

    rows = [
        replace(row, scores=label_scores("plain" if is_erased(row) else row.style, row.object))
        for row in load_sample_rows(tmp_path / "audit")
    ]
    replace_samples(tmp_path / "audit", rows)
    result = replace(read_result(tmp_path / "audit"), **vars(count_rates(rows, plan.suite, "style", ["neon"], "boat")))
    rates = {name: (rate.k, rate.n) for name, rate in result.models[ERASED].rates.items()}
    assert rates["UA"] == (6, 6) and rates["FR"] == (2, 3) and rates["UA_named"] == (4, 4) and rates["IRA"] == (2, 2)
    page = write_report(tmp_path / "audit", result, plan.suite.gates).read_text()
    counts = "where it should be retained: labeled as prompted in 2 of 3 images (FR), the base&#39;s in 3 of 3"
    assert f"{counts}: 33.3 points lower; a loss of up to" in page
    assert "still shown 0 of 6 · lost elsewhere 1 of 3 ·" in page
    assert json.loads((tmp_path / "audit" / "report.json").read_text())["replacement_labels"] == [{"label": "plain", "k": 6, "n": 6}]


def test_the_default_folder_names_the_cell() -> None:
    assert [describe_only(audit_result(axis=axis, job=audit_job(only="x"))) for axis in ("style", "object")] == [" on “x”", " in “x”"]
    assert default_audit_folder([Path("runs/a")], "pocket", "smoke", only="boat") == Path("runs/a/audit-pocket-smoke-only-boat")
    assert default_audit_folder([Path("runs/a")], "pocket", "smoke") == Path("runs/a/audit-pocket-smoke")
