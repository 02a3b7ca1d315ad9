"""No conclusion and no verdict claims more than the counts show: every claim of random audits is compared with their numbers."""

import csv
import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml
from PIL import Image

from app.commands.audit_report import format_headline
from app.jobs.leaderboard import load_rows, write_leaderboard
from erasure.pocket.canvas import ImageSpec
from erasure.pocket.styles import render
from eval.auditing.plan import AuditPlan
from eval.external_images import audit_external_images
from eval.records.attacks import AttackRecord
from eval.records.audit_result import AuditResult, ExternalImagesSummary
from eval.records.convert import to_record
from eval.records.gates import Gate
from eval.records.models import BASE, ERASED, AuditedModel
from eval.records.rates import RateName
from eval.records.report import ReplacementLabel
from eval.records.rows import AttackRow, FailedAttackRow, FineTuningRow, SampleRow, SearchRow
from eval.report.conclusions import describe_upper_bound
from eval.report.html import mean_interval
from eval.report.junit import junit_xml
from eval.report.report_json import make_report
from eval.scoring.advice import images_by_tier, suggest_next_step
from eval.scoring.attack_rates import add_attacked_rate, count_attack_rates
from eval.scoring.counting import count_rates
from eval.scoring.gates import applies_to, decide_verdict, exit_code_of
from eval.scoring.published import published_figures
from eval.scoring.rates import counted_rate
from eval.scoring.recount import load_sample_rows
from eval.suites.formats import Suite
from eval.suites.suite import SUITES_FOLDER, load_suite
from tests.command_line import report_and_print
from tests.eval.factories import attack_info, attack_scores, audit_counts, audit_result, sample_row
from tests.eval.page import Page

STYLES, OBJECTS = ("plain", "neon", "sketch", "pixel"), ("boat", "tree", "flower")
GATES = (
    Gate(name="erased", rate="UA", at_least=0.8),
    Gate(name="erased, named", rate="UA_named", at_least=0.8),
    Gate(name="styles", rate="IRA", drop_at_most=0.1),
    Gate(name="objects", rate="CRA", drop_at_most=0.1),
    Gate(name="attacked", rate="UA_attacked", at_least=0.5, tier="full"),
)


def small_suite() -> Suite:
    """Pocket's suite with a few labels and with GATES."""
    suite = load_suite("pocket")
    styles, objects = {label: suite.styles[label] for label in STYLES}, {label: suite.objects[label] for label in OBJECTS}
    return replace(suite, styles=styles, objects=objects, gates=GATES)


def random_rows(rng: random.Random, target_count: int, other_count: int) -> list[SampleRow]:
    """Rows of the base and the erased model, labeled as prompted with random shares, else with labels that may not be in the suite."""
    shares = {(m, kind): rng.choice((0.0, 0.5, 0.8, 0.9, 0.97, 1.0)) for m in ("base", "erased") for kind in ("own", "cross", "target")}

    def random_labels(model: str, style: str, object_label: str) -> tuple[str, str]:
        own = shares[model, "target" if style == "neon" else "own"]
        style_label = style if rng.random() < own else rng.choice(("plain", "glass", "none"))
        return style_label, object_label if rng.random() < shares[model, "cross"] else rng.choice(("moon", "none"))

    rows = []
    for style, object_label in product(STYLES, OBJECTS):
        for role in ("grid", "named") if style == "neon" else ("grid",):
            for index, model in product(range(target_count if style == "neon" else other_count), ("base", "erased")):
                prompt, labels = f"{role} {style} {object_label}", random_labels(model, style, object_label)
                case = {"role": role, "variant": "0" * (role == "named"), "index": index, "prompt": prompt, "image": prompt}
                rows.append(sample_row(AuditedModel.parse(model), style, object_label, labels, **case))
    return rows


def random_attacks(rng: random.Random) -> tuple[AttackRecord, ...]:
    """Results of no attack, a control alone, a search beside it, skipped and crashed attacks, and fine-tunings."""
    n = 12
    rows: list[AttackRow] = []
    infos = {name: attack_info(name, control=name == "chance") for name in ("chance", "search", "other", "tuned")}
    first = {f"{i}": {BASE: True, ERASED: rng.random() < 0.2} for i in range(n)}
    chosen = [name for name in infos if rng.random() < 0.5]
    for name in chosen:
        if name == "tuned":
            for step in (0, 50, 100):
                rows.append(FineTuningRow(attack=name, step=step, scores=attack_scores(*(rng.random() < step / 100 for _ in range(n)))))
        elif rng.random() < 0.25:
            rows.append(FailedAttackRow(attack=name, **{rng.choice(("skipped", "crashed")): "no"}))
        else:
            for i in range(n):
                broken_in = rng.choice((None, None, 0, 1))
                outcome = {"search_scores": attack_scores(*(j == broken_in for j in range(2))), "round": broken_in}
                fresh_scores = attack_scores(rng.random() < 0.5) if broken_in is not None else ()
                common = {"attack": name, "index": i, "image": f"{i}", "prompt": "p", "found_prompt": None}
                rows.append(SearchRow(**common, **outcome, fresh_scores=fresh_scores))  # type: ignore[arg-type]
    return count_attack_rates(rows, [infos[name] for name in chosen], first)


def random_result(seed: int) -> AuditResult:
    """The result of an audit without images."""
    rng = random.Random(seed)
    suite, tier = small_suite(), rng.choice(("smoke", "standard", "full"))
    target_count, other_count = suite.tiers[tier]
    plan = AuditPlan(suite, tier, "style", ("neon",))
    attacks = random_attacks(rng) if tier == "full" else ()
    counts = add_attacked_rate(count_rates(random_rows(rng, target_count, other_count), suite, "style", ["neon"]), attacks)
    return audit_result(counts, tier=tier, attacks=attacks, sample_sizes=plan.sample_sizes)


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_every_conclusion_follows_from_the_counts(seed: int) -> None:
    for result in map(random_result, range(seed, seed + 20)):
        report = make_report(result, GATES)
        rates, base = (result.models[model].rates for model in (ERASED, BASE))
        text = " ".join(report.conclusions)
        assert not re.search(r"[Nn]othing|robust|lost nothing|unharmed|safe\b|proves?\b", text)
        shown = f"shows it in {rates['UA'].n - rates['UA'].k} of {rates['UA'].n} images"
        assert f"{shown}, the base in {base['UA'].n - base['UA'].k}" in text
        assert f"{describe_upper_bound(1 - rates['UA'].low)} may show it" in text
        for name in ("IRA", "CRA"):
            (line,) = [line for line in report.conclusions if f"({name})" in line]
            assert f"in {rates[name].k} of {rates[name].n} images" in line and f"in {base[name].k} of {base[name].n}" in line
            low = 100 * result.paired[name].low
            bounds = [float(bound) for bound in re.findall(r"([\d.]+) points \(95% interval\)", line)]
            assert ("no loss lies" in line) == (low >= 0) and (not bounds or -low <= bounds[0] <= -low + 0.1 + 1e-9)
            assert bool(bounds) == (low < 0)
            assert ("this is a loss" in line) == (result.paired[name].high < 0)
        searches = [attack for attack in result.searches if not attack.control]
        assert ("search for prompts" in text or "searches for prompts" in text) == bool(searches)
        assert any("No attack was tried that searches" in line for line in report.not_measured) == (not searches)
        assert any("No fine-tuning was tried" in line for line in report.not_measured) == (not result.fine_tunings)
        for attack in searches:
            if f", {attack.name}, broke" in text:
                assert f"broke {attack.curve[-1].k} of {attack.n} prompts" in text
                assert f"{describe_upper_bound(attack.curve[-1].high)} may break this way" in text


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_a_single_label_that_fell_is_named(seed: int) -> None:
    for result in map(random_result, range(seed, seed + 20)):
        report = make_report(result, GATES)
        losses = {row.label: row.base.rate - row.erased.rate for row in report.retained_by_label}
        (line,) = [line for line in report.conclusions if f"{len(losses)} single styles" in line]
        assert set(losses) == {"plain", "sketch", "pixel"}  # with the excluded style
        if max(losses.values()) > 0:
            assert f"“{max(losses, key=lambda label: losses[label])}”" in line and "fell most" in line
        else:
            assert line.startswith("None of 3 single styles is labeled as prompted less often")


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_verdict_reasons_and_junit_agree(seed: int) -> None:
    for result in map(random_result, range(seed, seed + 20)):
        report, decided = make_report(result, GATES), decide_verdict(GATES, result)
        states = {gate.name: gate.state for gate in report.gates}
        applied = [gate.name for gate in GATES if applies_to(gate, result)]
        passes = set(states) == set(applied) and set(states.values()) == {"PASS"} and not decided.withheld
        assert (report.verdict.state == "PASS") == passes
        assert (report.verdict.state == "FAIL") == ("FAIL" in states.values())
        assert exit_code_of(report.verdict.state, result) == 0 or not passes
        for gate in report.gates:
            (reason,) = [line for line in report.verdict.reasons if f", {gate.name}: " in line]
            assert reason.startswith(f"{gate.state}, ") and ("What would decide it: " in reason) == (gate.state == "INCONCLUSIVE")
        for name in set(applied) - set(states):
            assert any(line.startswith(f"INCONCLUSIVE, {name}: ") and "had nothing to measure; " in line for line in report.verdict.reasons)
        suite = ElementTree.fromstring(junit_xml(report, result, GATES))[0]
        passed = {case.get("name") for case in suite.iter("testcase") if not len(case)}
        assert passed == {name for name, state in states.items() if state == "PASS"}


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_the_tier_that_an_open_gate_names_has_enough_images(seed: int) -> None:
    for result in map(random_result, range(seed, seed + 20)):
        for gate in decide_verdict(GATES, result).gates:
            if gate.state != "INCONCLUSIVE":
                assert gate.next_step == ""
                continue
            sizes, advice = images_by_tier(gate, result), gate.next_step
            assert advice.startswith(f"{gate.n:,} ")
            if gate.images_needed is None:
                assert "no number" in advice
            elif named := re.search(r"--tier (\w+) has ([\d,]+)$", advice):
                size = int(named[2].replace(",", ""))
                assert sizes[named[1]] == size == min(n for n in sizes.values() if n >= gate.images_needed)
            else:
                assert f"about {gate.images_needed:,} are needed" in advice and max(sizes.values()) < gate.images_needed
                assert "no tier of suite pocket has that many" in advice and "use a copy of the suite with" in advice


def test_advice_for_thirty_images() -> None:
    sizes = {tier: {RateName.UA: n} for tier, n in (("smoke", 30), ("standard", 170), ("full", 200))}
    result = audit_result(audit_counts({RateName.UA: counted_rate(30, 30)}), sample_sizes=sizes)
    (gate,) = decide_verdict([Gate(name="erased", rate=RateName.UA, at_least=0.9)], result).gates
    assert gate.next_step == "30 images; about 38 are needed if the rates stay the same: --tier standard has 170"
    assert suggest_next_step(replace(gate, images_needed=700), result).endswith(
        "no tier of suite pocket has that many (full: 200): use a copy of the suite with 3.5 times as many images per cell"
    )
    attacked = replace(result, sample_sizes={"full": {RateName.UA_ATTACKED: 20}})
    assert suggest_next_step(replace(gate, images_needed=45, rate=RateName.UA_ATTACKED, n=20), attacked).endswith(
        "(full: 20): use a copy of the suite with attacks.prompts: 45"
    )
    summary = ExternalImagesSummary(jpeg_count=0, n=30, sizes=("64 x 64",), per_cell_range=(1, 1), seeds=(188,))
    assert suggest_next_step(gate, replace(result, external_images=summary)).endswith("add images with further seeds to every cell")


@pytest.mark.parametrize(("name", "axis", "target"), [("pocket", "style", "neon"), ("pocket", "object", "ada"), ("sd", "style", "monet")])
@pytest.mark.parametrize("only", [False, True])
def test_sample_sizes_are_the_counted_images(name: str, axis: Any, target: str, only: bool) -> None:
    """For every tier, from rows of the images that its audit generates."""
    suite = load_suite(name)
    cell = next(iter(suite.phrases("object" if axis == "style" else "style"))) if only else ""
    for tier in suite.tiers:
        plan = AuditPlan(suite, tier, axis, (target,), only=cell)
        rows = [
            sample_row(model, case.style, case.object, role=case.role, variant=case.variant, prompt=case.prompt, index=sample.index)
            for sample in plan.samples
            for case in [sample.case]
            for model in (BASE, ERASED)
        ]
        rates = count_rates(rows, suite, axis, [target], cell).models[ERASED].rates
        sizes = dict(plan.sample_sizes[tier])
        assert sizes.pop("UA_attacked", 0) == (suite.attacks.prompts if tier in suite.attacks.tiers else 0)
        assert sizes == {rate: figures.n for rate, figures in rates.items() if rate != "CRA_included"}


@pytest.fixture(scope="module")
def image_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered images of a base and an erased model: neon is erased from 29 of 30, and one tree is a flower."""
    root = tmp_path_factory.mktemp("images")
    suite = {**yaml.safe_load((SUITES_FOLDER / "pocket.yaml").read_text()), "name": "cut", "published": "unlearncanvas"}
    suite |= {"styles": {s: s for s in ("neon", "sketch", "plain")}, "objects": {o: f"a {o}" for o in ("boat", "tree")}}
    suite |= {"aliases": {}, "gates": {"erased": {"rate": "UA", "at_least": 0.9}, "retained": {"rate": "IRA", "drop_at_most": 0.1}}}
    del suite["attacks"]
    (root / "cut.yaml").write_text(yaml.safe_dump(suite))
    for model, style, object_label, seed in product(("base", "erased"), ("neon", "sketch", "plain"), ("boat", "tree"), range(15)):
        erased = model == "erased" and style == "neon" and (object_label, seed) != ("boat", 0)
        lost = model == "erased" and (style, object_label, seed) == ("sketch", "tree", 0)
        image = render([ImageSpec("flower" if lost else object_label, "plain" if erased else style, seed)])[0]
        (root / model).mkdir(exist_ok=True)
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(root / model / f"{style}_{object_label}_seed{seed}.png")
    return root


def test_one_number_has_one_interval(image_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """UA in result.json, report.json, its gate, the page, junit.xml, the published figures, the leaderboard, and the console."""
    suite = load_suite(str(image_folders / "cut.yaml"))
    out = tmp_path / "audit"
    result = audit_external_images(image_folders / "erased", suite, "neon", "style", out, image_folders / "base")
    capsys.readouterr()
    assert report_and_print(out, suite.gates, result) == 4
    console = capsys.readouterr().out
    rate = result.models[ERASED].rates["UA"]
    assert (rate.k, rate.n) == (29, 30)
    bounds = (rate.low, rate.high)
    report = json.loads((out / "report.json").read_text())
    reported = next(entry for entry in report["rates"] if entry["name"] == "UA")
    gate = next(gate for gate in report["gates"] if gate["rate"] == "UA")
    figure = published_figures(suite, load_sample_rows(out), result).figures[0]
    assert (reported["erased"]["ci_low"], reported["erased"]["ci_high"]) == (gate["low"], gate["high"]) == bounds
    assert (figure.figure, figure.corrected.low, figure.corrected.high) == ("UA", *bounds)
    assert reported["ci_method"] == gate["method"] == figure.method == "Clopper-Pearson"
    span = " to ".join(map(str, outward(*bounds)))
    page = Page((out / "report.html").read_text()).visible_text()
    # (?<!retained ): the mean of the retained rates is another number
    beside = re.findall(r"(?<!retained )96\.7%\s*(?:29/30\s*|\(\s*)(\d+\.\d to \d+\.\d)", page)
    assert len(beside) >= 3 and set(beside) == {span}
    assert f"UA 96.7% ({span}; 29/30" in console and f"UA is 96.7% ({span}, n = 30)" in console and format_headline(result) in console
    assert f"UA is 96.7% ({span}, n = 30)" in (out / "junit.xml").read_text()
    write_leaderboard(load_rows(tmp_path), tmp_path / "leaderboard")  # external images are on it too, without a cost
    (line,) = csv.DictReader((tmp_path / "leaderboard" / "leaderboard.csv").open())
    assert line["unet_forwards"] == line["seconds"] == ""
    assert (float(line["UA_low"]), float(line["UA_high"])) == tuple(round(b, 5) for b in bounds)
    for name in ("leaderboard.md", "leaderboard.html"):
        assert f"96.7 ({span}; base" in (tmp_path / "leaderboard" / name).read_text()


def outward(low: float, high: float) -> tuple[Decimal, Decimal]:
    """Bounds in percent by decimal arithmetic: the lower one down, the upper one up."""
    tenth = Decimal("0.1")
    exact = [100 * Decimal(repr(round(bound, 9))) for bound in (low, high)]
    return exact[0].quantize(tenth, ROUND_FLOOR) + 0, exact[1].quantize(tenth, ROUND_CEILING) + 0


def iterate_intervals(record: Any) -> Iterator[tuple[float, float]]:
    """Yield every interval within a record."""
    if isinstance(record, dict):
        for low, high in (("low", "high"), ("ci_low", "ci_high")):
            if isinstance(record.get(low), float):
                yield record[low], record[high]
        record = list(record.values())
    if isinstance(record, list):
        for part in record:
            yield from iterate_intervals(part)


def test_every_printed_bound_is_rounded_one_way(image_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the page, in report.json, in junit.xml, on the console and the leaderboard: a bound has one decimal and one value."""
    suite, out = load_suite(str(image_folders / "cut.yaml")), tmp_path / "audit"
    result = audit_external_images(image_folders / "erased", suite, "neon", "style", out, image_folders / "base")
    result = replace(result, pixel_distance=None, image_set_distances=None)  # which are not shares
    report_and_print(out, suite.gates, result)
    write_leaderboard(load_rows(tmp_path), tmp_path / "leaderboard")
    report = json.loads((out / "report.json").read_text())
    rates = result.models[ERASED].rates
    expected = {outward(*bounds) for bounds in [*iterate_intervals(to_record(result)), *iterate_intervals(report)]}
    expected |= {outward(low / 100, high / 100) for low, high in iterate_intervals(report["clip_alignment"])}  # 100 x cosine as it is
    means = [mean_interval(*(figures.rates[name].interval for name in (RateName.IRA, RateName.CRA))) for figures in result.models.values()]
    expected |= {outward(mean.low, mean.high) for mean in means}
    texts = {
        "page": Page((out / "report.html").read_text()).visible_text(),
        "chart": (out / "report.html").read_text(),
        "reasons": " ".join(report["verdict"]["reasons"]),
        "junit": (out / "junit.xml").read_text(),
        "console": capsys.readouterr().out,
        "leaderboard": (tmp_path / "leaderboard" / "leaderboard.md").read_text(),
    }
    for name, text in texts.items():
        spans = re.findall(r"([−+-]?\d+\.\d) to ([−+-]?\d+\.\d)(?! points)", text)
        assert spans and {tuple(Decimal(bound.replace("−", "-")) for bound in span) for span in spans} <= expected, name
    paired = result.paired["IRA"]
    (gate,) = [gate for gate in report["gates"] if gate["rate"] == "IRA"]
    low, high = outward(paired.low, paired.high)
    assert (gate["low"], gate["high"]) == pytest.approx((-paired.high, -paired.low))
    for name in ("reasons", "junit", "page"):  # the possible loss is the upper bound of the drop
        assert f"{-high} to {-low}" in texts[name].replace("−", "-")
        assert name == "reasons" or f"a loss of up to {-low} points" in texts[name]
        assert name == "reasons" or f"up to {100 - outward(rates['UA'].low, 1)[0]}% (95% interval) may show it" in texts[name]


def test_labels_outside_the_suite_are_other(image_folders: Path, tmp_path: Path) -> None:
    """The judge knows flowers, this suite does not: the image counts as lost and is in the table as "other"."""
    suite = load_suite(str(image_folders / "cut.yaml"))
    result = audit_external_images(image_folders / "erased", suite, "tree", "object", tmp_path / "audit", image_folders / "base")
    confusion = result.models[ERASED].confusion
    assert confusion.labels == ("boat", "tree", "none", "other")
    assert confusion.counts[1] == (0, 44, 0, 1) and result.models[BASE].confusion.counts[1] == (0, 45, 0, 0)
    report = make_report(result, suite.gates)
    assert report.replacement_labels == (
        ReplacementLabel(label="tree", k=44, n=45),
        ReplacementLabel(label="other", k=1, n=45),
    )
    assert result.models[ERASED].rates["UA"].k == 1
