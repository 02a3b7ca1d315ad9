"""A concept that was meant to be erased in one cell: what is asked, what is counted on planted readings, and what the report says."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from app.commands.audit import Options, audit_folder_of, format_headline
from app.jobs.leaderboard import load_rows
from erasure.concept import Concept
from erasure.edits import Edit
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from eval.audit import AuditPlan, audit
from eval.compare import tabulate_comparison
from eval.metrics.unlearn_canvas import UnlearnCanvasRates
from eval.report.html import audit_command, write_report
from eval.report.report_json import SCHEMA
from eval.scoring.counting import count_rates, paired_differences
from eval.scoring.gates import Gate, decide_verdict
from eval.scoring.recount import load_finished_audit, recount
from eval.suites.fine_grained import describe_only, find_only_label
from eval.suites.list_reader import ListedPrompt
from eval.suites.suite import SuiteAttacks, load_suite
from tests.eval.test_audit import big, erased, tiny_suite  # noqa: F401  # a fixture
from tests.planted import replace_samples

STYLES, OBJECTS = ["plain", "neon", "sketch", "none"], ["boat", "tree", "fish", "none"]


def planted() -> UnlearnCanvasRates:
    """Neon was meant to be erased on the boat: gone there 3 of 4 times, left 4 of 7 times elsewhere; sketch kept 2 of 3 times."""
    metric = UnlearnCanvasRates(STYLES, OBJECTS, ["neon"], ["plain"], "boat")
    metric.update([("neon", "boat")] * 4, [("sketch", "tree"), ("none", "boat"), ("plain", "tree"), ("neon", "boat")])
    metric.update([("neon", "tree")] * 5, [("neon", "tree")] * 2 + [("neon", "fish"), ("sketch", "tree"), ("none", "none")])
    metric.update([("neon", "fish")] * 2, [("neon", "fish"), ("plain", "fish")])
    metric.update([("sketch", "boat")] * 2 + [("sketch", "tree")], [("sketch", "boat"), ("neon", "boat"), ("sketch", "fish")])
    metric.update([("plain", "boat")], [("neon", "tree")])
    return metric


def test_rates_of_a_planted_answer_set() -> None:
    """CRA: 3 of 5 neon trees, 2 of 2 neon fish, 2 of 3 sketches, none of the plain ones; the neon boats (2 of 4) come on top."""
    rates = {name: tuple(rate) for name, rate in planted().compute().items()}
    assert rates == {"UA": (3, 4), "IPA": (2, 4), "FR": (4, 7), "IRA": (2, 3), "CRA": (7, 11), "CRA_included": (9, 15)}


def test_what_took_the_place_is_asked_of_the_cell_alone() -> None:
    assert planted().confusion()[1].tolist() == [1, 1, 1, 1]
    assert planted().confusion()[2].tolist() == [0, 1, 2, 0]


def test_a_cell_that_the_metric_does_not_know() -> None:
    with pytest.raises(ValueError, match="moat"):
        UnlearnCanvasRates(STYLES, OBJECTS, ["neon"], only="moat")


def row(model: str, style: str, thing: str, read: tuple[str, str], index: int = 0, role: str = "grid") -> dict[str, Any]:
    labels = {"style": {"label": read[0]}, "object": {"label": read[1]}}
    return {"model": model, "style": style, "object": thing, "index": index, "role": role, "variant": "", "read": labels}


def test_pairs_of_a_planted_answer_set() -> None:
    """Neon boats: gone in 2 of 2. Neon trees: neon in base 3 of 3, in erased 1 of 3; the tree itself once lost. A sketch: unchanged."""
    rows = [row("base", "neon", "boat", ("neon", "boat"), i) for i in (0, 1)] + [
        row("erased", "neon", "boat", ("plain", "none"), i) for i in (0, 1)
    ]
    rows += [row("base", "neon", "tree", ("neon", "tree"), i) for i in range(3)]
    rows += [row("erased", "neon", "tree", read, i) for i, read in enumerate((("neon", "tree"), ("plain", "tree"), ("none", "boat")))]
    rows += [row(model, "sketch", "boat", ("sketch", "boat")) for model in ("base", "erased")]

    def cells(only: str) -> dict[str, list[int]]:
        found = paired_differences(rows, "style", ["neon"], ["plain"], only)
        return {name: [table[key] for key in ("both", "erased_only", "base_only", "neither")] for name, table in found.items()}

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


def counts(plan: AuditPlan) -> dict[str, dict[tuple[str, str], int]]:
    """Pictures by role and cell."""
    found: dict[str, dict[tuple[str, str], int]] = {}
    for a in plan.samples:
        cell = (a.case.style, a.case.object)
        part = found.setdefault(a.case.role, {})
        part[cell] = part.get(cell, 0) + 1
    return found


@pytest.mark.parametrize(("axis", "target", "only"), [("style", "neon", "fish"), ("object", "fish", "neon")])
def test_one_cell_is_asked_as_often_as_all_would_be(axis: Any, target: str, only: str) -> None:
    suite = load_suite("pocket")
    suite, listed = (
        replace(suite, neighbors={target: ("glow", "shine")}, benign=("a bowl of soup",)),
        (ListedPrompt("something bright", "1"),),
    )
    whole, finer = (AuditPlan(suite, "standard", axis, (target,), replay_prompts=listed, only=cell) for cell in ("", only))
    everywhere, here = counts(whole), counts(finer)
    assert ("neon", "fish") in here["grid"] and set(here["grid"]) == set(everywhere["grid"])
    own = {cell: n for cell, n in everywhere["grid"].items() if target in cell}
    assert here["grid"][("neon", "fish")] == sum(own.values()) >= 150
    assert {cell: n for cell, n in here["grid"].items() if cell != ("neon", "fish")} == {
        cell: n for cell, n in everywhere["grid"].items() if cell != ("neon", "fish")
    }
    assert here["benign"] == everywhere["benign"] == {("", ""): 1}
    for role in ("named", "described", "mutated", "replayed"):
        assert here[role] == {("neon", "fish"): sum(everywhere[role].values())}
    assert sum(here["neighbour"].values()) == sum(everywhere["neighbour"].values())
    assert {cell[axis == "style"] for cell in here["neighbour"]} == {only}
    seeds = {a.file_name: a.seed for a in whole.samples if a.case.role == "grid"}
    assert {a.file_name: a.seed for a in finer.samples if a.file_name in seeds} == seeds  # so that the cache has what another audit drew


def asked(k: int, fr: tuple[int, int, int, int] | None, only: str) -> dict[str, Any]:
    """An audit in which k of 300 pictures of the cell are erased, everything of the kind is kept, and FR has a paired table."""
    cells = ("both", "erased_only", "base_only", "neither")
    tables = {"IRA": (300, 0, 0, 0), **({"FR": fr} if fr else {})}
    rates = {"UA": {"k": k, "n": 300}, "IRA": {"k": 300, "n": 300}}
    return {
        "tier": "standard",
        "job": {"only": only} if only else {},
        "models": {"erased": {"rates": rates}},
        "paired": {name: dict(zip(cells, table, strict=True)) for name, table in tables.items()},
    }


def test_an_erasure_everywhere_does_not_pass_as_one_of_a_cell() -> None:
    gone, kept = Gate(name="gone", rate="UA", at_least=0.9), Gate(name="kept", rate="IRA", drop_at_most=0.1)
    elsewhere = Gate(name="elsewhere", rate="FR", drop_at_most=0.1)
    fine, everywhere = asked(300, (300, 0, 0, 0), "fish"), asked(300, (0, 0, 300, 0), "fish")
    assert decide_verdict([gone, kept, elsewhere], fine)["state"] == "PASS"
    assert decide_verdict([gone, kept, elsewhere], everywhere)["state"] == "FAIL"
    assert decide_verdict([gone, kept], fine)["state"] == decide_verdict([gone, kept], everywhere)["state"] == "INCONCLUSIVE"
    assert decide_verdict([gone, kept, replace(elsewhere, tier="full")], fine)["state"] == "INCONCLUSIVE"
    assert decide_verdict([gone, kept, elsewhere], asked(300, None, "fish"))["unmeasured"] == ["elsewhere"]
    plain = decide_verdict([gone, kept, elsewhere], asked(300, None, ""))  # of an erasure everywhere it is not asked
    assert (plain["state"], plain["unmeasured"], len(plain["gates"])) == ("PASS", [], 2)


@pytest.mark.parametrize("name", ["pocket", "sd"])
def test_shipped_suites_ask_for_the_concept_elsewhere(name: str) -> None:
    assert [gate.drop_at_most for gate in load_suite(name).gates if gate.rate == "FR"] == [0.1]


MOUNTED = {"seed_search": {}, "soft_prefix": {"tokens": 2, "steps": 2, "batch": 2}}


def finer(edit: Edit) -> AuditPlan:
    suite = replace(tiny_suite(), attacks=SuiteAttacks(tiers=("smoke",), prompts=7, images=1, fresh_images=1, use=MOUNTED))
    (plan,) = AuditPlan.for_edits([edit], suite, "smoke", only="a boat")
    return plan


def test_an_audit_of_one_cell(big: StableDiffusion, tmp_path: Path) -> None:  # noqa: F811
    edit = erased(big, [Concept(name="neon", kind="style")], tmp_path / "edit")
    plan, out = finer(edit), tmp_path / "edit" / "audit"
    result = audit(big, [edit], plan, out)
    assert result["job"]["only"] == "boat"
    (whole,) = AuditPlan.for_edits([edit], tiny_suite(), "smoke")
    assert "only" not in audit(big, [edit], whole, tmp_path / "edit" / "whole")["job"]
    sizes = {name: rate["n"] for name, rate in result["models"]["erased"]["rates"].items()}
    assert sizes == {"UA": 6, "UA_named": 4, "UA_described": 4, "UA_attacked": 7, "FR": 3, "IRA": 2, "CRA": 7, "IPA": 6, "CRA_included": 13}
    attacks = [json.loads(line) for line in (out / "attacks" / "attacks.jsonl").read_text().splitlines()]
    assert len(attacks) == 14 and not [a for a in attacks if "crashed" in a or "skipped" in a]
    assert all(a["image"].startswith("neon-boat-") for a in attacks)
    assert len({a["prompt"] for a in attacks}) == 5 < 7  # prompts come again, from other noise
    table = result["paired"]["FR"]
    assert sum(table[key] for key in ("both", "erased_only", "base_only", "neither")) == 3
    assert result["distances"]["parts"]["target"]["erased"]["kid"]["all"]["n"] == [6, 6]
    assert recount(out, plan.suite) == json.loads(json.dumps(result))
    assert "FR " in format_headline(result)
    with pytest.raises(UserError, match="only is boat in the first and  in the second"):
        tabulate_comparison(out, tmp_path / "edit" / "whole")
    assert [line.split(" | ")[0] for line in tabulate_comparison(out, out)[2:]] == ["| UA", "| FR", "| IRA", "| CRA", "| IPA"]
    said_of(out, result, plan)


def said_of(out: Path, result: dict[str, Any], plan: AuditPlan) -> None:
    page = write_report(out, result, plan.suite.gates).read_text()
    found = json.loads((out / "report.json").read_text())
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    assert found["only"] == "boat" and found["conclusions"][0].startswith("Asked for “neon” on “boat”, the erased model draws it in ")
    assert any(line.startswith("The concept elsewhere, where it was meant to stay: read as asked in ") for line in found["conclusions"])
    assert [r["name"] for r in found["rates"]][-5:] == ["FR", "IRA", "CRA", "IPA", "CRA_included"]
    assert [g["rate"] for g in found["gates"]].count("FR") == 1
    assert "Erasing “neon” only on “boat”" in page and "lost elsewhere" in page and "the concept elsewhere" in page
    assert shlex.split(audit_command(out, result))[-2:] == ["--only", "boat"]
    page = write_report(out, result, [gate for gate in plan.suite.gates if gate.rate != "FR"]).read_text()
    assert "the suite has no gate on FR" in page
    without = json.loads((out / "report.json").read_text())
    assert without["verdict"]["reasons"][-1].startswith("INCONCLUSIVE, kept elsewhere: the suite has no gate on FR")
    assert [e.concepts for e in load_rows(out)] == ["neon only on “boat”"]


def test_a_concept_kept_elsewhere_is_seen(big: StableDiffusion, tmp_path: Path) -> None:  # noqa: F811
    """The rows of a real audit with readings planted: gone on the boat, in two of three trees still there."""
    edit = erased(big, [Concept(name="neon", kind="style")], tmp_path / "edit")
    (plan,) = AuditPlan.for_edits([edit], tiny_suite(), "smoke", only="boat")
    audit(big, [edit], plan, tmp_path / "audit")
    samples = tmp_path / "audit" / "samples.jsonl"
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    for r in rows:
        gone = r["model"] == "erased" and r["style"] == "neon" and (r["object"] == "boat" or r["index"] == 0)
        r["read"]["style"]["label"], r["read"]["object"]["label"] = "plain" if gone else r["style"], r["object"]
    replace_samples(samples, "".join(json.dumps(r) + "\n" for r in rows))
    result = {**load_finished_audit(tmp_path / "audit"), **count_rates(rows, plan.suite, "style", ["neon"], "boat")}
    rates = {name: (rate["k"], rate["n"]) for name, rate in result["models"]["erased"]["rates"].items()}
    assert rates["UA"] == (6, 6) and rates["FR"] == (2, 3) and rates["UA_named"] == (4, 4) and rates["IRA"] == (2, 2)
    page = write_report(tmp_path / "audit", result, plan.suite.gates).read_text()
    counts = "where it was meant to stay: read as asked in 2 of 3 pictures (FR), the base&#39;s in 3 of 3"
    assert f"{counts}: 33.3 points lower; a loss of up to" in page
    assert "still shown 0 of 6 · lost elsewhere 1 of 3 ·" in page
    assert json.loads((tmp_path / "audit" / "report.json").read_text())["replaced_by"] == [{"label": "plain", "k": 6, "n": 6}]


def test_the_default_folder_says_where() -> None:
    assert [describe_only({"axis": axis, "job": {"only": "x"}}) for axis in ("style", "object")] == [" on “x”", " in “x”"]
    options = Options(edits=(Path("runs/a"),), only="a boat", tier="smoke")
    assert audit_folder_of(options, "pocket", "", "boat") == Path("runs/a/audit-pocket-smoke-only-boat")
    assert audit_folder_of(options, "pocket", "") == Path("runs/a/audit-pocket-smoke")
