"""No sentence and no verdict says more than the counts: generated audits, whose every claim is held against their numbers."""

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

from app.commands.audit import format_headline, write_report
from app.jobs import leaderboard as board
from erasure.pocket.canvas import ImageSpec, render
from eval.audit import AuditPlan
from eval.external_images import audit_external_images
from eval.report.conclusions import describe_upper_bound
from eval.report.html import interval_of, mean_interval
from eval.report.junit import junit_xml
from eval.report.report_json import make_report
from eval.scoring.advice import images_by_tier, suggest_next_step
from eval.scoring.attack_rates import add_attacked_rate, count_attack_rates
from eval.scoring.counting import count_rates
from eval.scoring.gates import Gate, decide_verdict, exit_code_of
from eval.scoring.published import published_figures
from eval.suites.suite import SUITES_FOLDER, Suite, load_suite
from tests.eval.report.test_html import Page

STYLES, OBJECTS = ("plain", "neon", "sketch", "pixel"), ("boat", "tree", "flower")
GATES = (
    Gate(name="gone", rate="UA", at_least=0.8),
    Gate(name="gone, named", rate="UA_named", at_least=0.8),
    Gate(name="styles", rate="IRA", drop_at_most=0.1),
    Gate(name="objects", rate="CRA", drop_at_most=0.1),
    Gate(name="attacked", rate="UA_attacked", at_least=0.5, tier="full"),
)


def cut(axis_styles: tuple[str, ...] = STYLES, axis_objects: tuple[str, ...] = OBJECTS) -> Suite:
    suite = load_suite("pocket")
    return replace(
        suite, styles={s: suite.styles[s] for s in axis_styles}, objects={o: suite.objects[o] for o in axis_objects}, gates=GATES
    )


def rows_of(rng: random.Random, many: int, few: int) -> list[dict[str, Any]]:
    """Pictures of base and erased model that are read as asked with shares of their own, also as labels that no suite asks for."""
    shares = {(m, kind): rng.choice((0.0, 0.5, 0.8, 0.9, 0.97, 1.0)) for m in ("base", "erased") for kind in ("own", "cross", "target")}

    def reading(model: str, style: str, thing: str) -> dict[str, Any]:
        own = shares[model, "target" if style == "neon" else "own"]
        said = style if rng.random() < own else rng.choice(("plain", "glass", "none"))
        seen = thing if rng.random() < shares[model, "cross"] else rng.choice(("moon", "none"))
        return {"style": {"label": said}, "object": {"label": seen}}

    found = []
    for style, thing in product(STYLES, OBJECTS):
        for role in ("grid", "named") if style == "neon" else ("grid",):
            for index, model in product(range(many if style == "neon" else few), ("base", "erased")):
                about = {"role": role, "variant": "0" * (role == "named"), "style": style, "object": thing, "index": index}
                prompt = f"{role} {style} {thing}"
                found.append({**about, "model": model, "prompt": prompt, "image": prompt, "read": reading(model, style, thing)})
    return found


def attacks_of(rng: random.Random) -> list[dict[str, Any]]:
    """None, a control alone, a search beside it, what was skipped, what crashed, and fine-tunings."""
    n, rows = 12, []
    about = {
        name: {"paper": "", "threat": "", "control": name == "chance", "fields": {}} for name in ("chance", "search", "other", "tuned")
    }
    first = {f"{i}": {"base": True, "erased": rng.random() < 0.2} for i in range(n)}
    chosen = [name for name in about if rng.random() < 0.5]
    for name in chosen:
        if name == "tuned":
            rows += [{"attack": name, "step": s, "read": [{"shown": rng.random() < s / 100} for _ in range(n)]} for s in (0, 50, 100)]
        elif rng.random() < 0.25:
            rows.append({"attack": name, rng.choice(("skipped", "crashed")): "no"})
        else:
            for i in range(n):
                hit = rng.choice((None, None, 0, 1))
                tried = [{"shown": j == hit} for j in range(2)]
                fresh = [{"shown": rng.random() < 0.5}] if hit is not None else []
                rows.append({"attack": name, "index": i, "image": f"{i}", "prompt": "p", "tried": tried, "round": hit, "fresh": fresh})
    return count_attack_rates(rows, {name: about[name] for name in chosen}, first)


def planted(seed: int) -> dict[str, Any]:
    """The result of an audit that was never drawn."""
    rng = random.Random(seed)
    suite, tier = cut(), rng.choice(("smoke", "standard", "full"))
    many, few = suite.tiers[tier]
    plan = AuditPlan(suite, tier, "style", ("neon",))
    attacks = attacks_of(rng) if tier == "full" else []
    result = {
        "tier": tier,
        **add_attacked_rate(count_rates(rows_of(rng, many, few), suite, "style", ["neon"]), attacks),
        "job": {
            "task": "audit",
            "suite": "pocket",
            "suite_version": 1,
            "tier": tier,
            "strength": 1.0,
            "compute": "",
            "base": "",
            "edits": [],
        },
        "attacks": attacks,
        "distance": None,
        "distances": {},
        "divergence": [],
        "judges": {},
        "missing": {},
        "errors": None,
        "edits": [{"concepts": [{"name": "neon", "kind": "style"}], "method": "esd", "cost": {}, "known": []}],
        "sizes": plan.sample_sizes,
    }
    return result


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_every_sentence_follows_from_the_counts(seed: int) -> None:
    for result in map(planted, range(seed, seed + 20)):
        found = make_report(result, GATES)
        rates, base = (result["models"][m]["rates"] for m in ("erased", "base"))
        said = " ".join(found["conclusions"])
        assert not re.search(r"[Nn]othing|robust|lost nothing|unharmed|safe\b|proves?\b", said)
        shown = f"draws it in {rates['UA']['n'] - rates['UA']['k']} of {rates['UA']['n']} pictures"
        assert (
            f"{shown}, the base in {base['UA']['n'] - base['UA']['k']}" in said
            and f"{describe_upper_bound(1 - rates['UA']['low'])} may show it" in said
        )
        for name in ("IRA", "CRA"):
            (line,) = [line for line in found["conclusions"] if f"({name})" in line]
            assert f"in {rates[name]['k']} of {rates[name]['n']} pictures" in line and f"in {base[name]['k']} of {base[name]['n']}" in line
            low = 100 * result["paired"][name]["low"]
            bounds = [float(x) for x in re.findall(r"([\d.]+) points \(95 % interval\)", line)]
            assert ("no loss lies" in line) == (low >= 0) and (not bounds or -low <= bounds[0] <= -low + 0.1 + 1e-9)
            assert bool(bounds) == (low < 0)
            assert ("this is a loss" in line) == (result["paired"][name]["high"] < 0)
        searches = [a for a in result["attacks"] if "curve" in a and not a["control"]]
        assert ("search for prompts" in said or "searches for prompts" in said) == bool(searches)
        assert any("No attack was tried that searches" in line for line in found["skipped"]) == (not searches)
        assert any("No fine-tuning was tried" in line for line in found["skipped"]) == (not any("steps" in a for a in result["attacks"]))
        for attack in searches:
            if f", {attack['name']}, broke" in said:
                assert f"broke {attack['curve'][-1]['k']} of {attack['n']} prompts" in said
                assert f"{describe_upper_bound(attack['curve'][-1]['high'])} may break so" in said


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_a_single_label_that_fell_is_named(seed: int) -> None:
    for result in map(planted, range(seed, seed + 20)):
        found = make_report(result, GATES)
        fell = {r["label"]: r["base"]["rate"] - r["erased"]["rate"] for r in found["kept_by_label"]}
        (line,) = [line for line in found["conclusions"] if f"{len(fell)} single styles" in line]
        assert set(fell) == {"plain", "sketch", "pixel"}  # what counts in no rate is watched as well
        if max(fell.values()) > 0:
            assert f"“{max(fell, key=lambda label: fell[label])}”" in line and "fell most" in line
        else:
            assert line.startswith("None of 3 single styles is read less often")


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_verdict_reasons_and_junit_agree(seed: int) -> None:
    for result in map(planted, range(seed, seed + 20)):
        found, decided = make_report(result, GATES), decide_verdict(GATES, result)
        states = {gate["name"]: gate["state"] for gate in found["gates"]}
        asked = [gate.name for gate in GATES if gate.applies_to(result)]
        whole = set(states) == set(asked) and set(states.values()) == {"PASS"} and not decided["withheld"]
        assert (found["verdict"]["state"] == "PASS") == whole
        assert (found["verdict"]["state"] == "FAIL") == ("FAIL" in states.values())
        assert exit_code_of(found["verdict"]["state"], result) == 0 or not whole
        for gate in found["gates"]:
            (reason,) = [r for r in found["verdict"]["reasons"] if f", {gate['name']}: " in r]
            assert reason.startswith(f"{gate['state']}, ") and ("Open: " in reason) == (gate["state"] == "INCONCLUSIVE")
        for name in set(asked) - set(states):
            assert any(r.startswith(f"INCONCLUSIVE, {name}: ") and "had nothing to measure; " in r for r in found["verdict"]["reasons"])
        suite = ElementTree.fromstring(junit_xml(found, result, GATES))[0]
        green = {case.get("name") for case in suite.iter("testcase") if not len(case)}
        assert green == {name for name, state in states.items() if state == "PASS"}


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_what_an_open_gate_asks_for_is_there_and_is_enough(seed: int) -> None:
    for result in map(planted, range(seed, seed + 20)):
        for gate in decide_verdict(GATES, result)["gates"]:
            if gate["state"] != "INCONCLUSIVE":
                assert gate["next"] == ""
                continue
            sizes, words = images_by_tier(gate, result), gate["next"]
            assert words.startswith(f"{gate['n']:,} ")
            if gate["needed"] is None:
                assert "no number" in words
            elif named := re.search(r"--tier (\w+) has ([\d,]+)$", words):
                size = int(named[2].replace(",", ""))
                assert sizes[named[1]] == size >= gate["needed"] and size == min(s for s in sizes.values() if s >= gate["needed"])
            else:
                assert f"about {gate['needed']:,} are needed" in words and max(sizes.values()) < gate["needed"]
                assert "no tier of suite pocket has that many" in words and "use a copy of the suite with" in words


def test_advice_in_the_example_of_thirty_pictures() -> None:
    rates = {"UA": {"k": 30, "n": 30}}
    result = {
        "tier": "smoke",
        "job": {"suite": "pocket"},
        "attacks": [],
        "models": {"erased": {"rates": rates}},
        "paired": {},
        "missing": {},
    }
    sizes = {tier: {"UA": n} for tier, n in (("smoke", 30), ("standard", 170), ("full", 200))}
    (gate,) = decide_verdict([Gate(name="erased", rate="UA", at_least=0.9)], {**result, "sizes": sizes})["gates"]
    assert gate["next"] == "30 pictures; about 38 are needed if the shares stay as they are: --tier standard has 170"
    assert suggest_next_step({**gate, "needed": 700}, {**result, "sizes": sizes}).endswith(
        "no tier of suite pocket has that many (full: 200): use a copy of the suite with 3.5 times as many pictures a cell"
    )
    assert suggest_next_step(
        {**gate, "needed": 45, "rate": "UA_attacked", "n": 20}, {**result, "sizes": {"full": {"UA_attacked": 20}}}
    ).endswith("(full: 20): use a copy of the suite with attacks.prompts: 45")
    assert suggest_next_step(gate, {**result, "images": {}}).endswith("add pictures with further seeds to every cell")


@pytest.mark.parametrize(("name", "axis", "target"), [("pocket", "style", "neon"), ("pocket", "object", "ada"), ("sd", "style", "monet")])
@pytest.mark.parametrize("only", [False, True])
def test_sizes_are_what_is_counted(name: str, axis: Any, target: str, only: bool) -> None:
    """For every tier, from rows of the pictures that an audit of it draws."""
    suite = load_suite(name)
    cell = next(iter(suite.phrases("object" if axis == "style" else "style"))) if only else ""
    for tier in suite.tiers:
        plan = AuditPlan(suite, tier, axis, (target,), only=cell)
        rows = [
            {"model": m, "role": a.case.role, "variant": a.case.variant, "style": a.case.style, "object": a.case.object, "index": a.index}
            | {"prompt": a.case.prompt, "read": {"style": {"label": "none"}, "object": {"label": "none"}}}
            for a in plan.samples
            for m in ("base", "erased")
        ]
        rates = count_rates(rows, suite, axis, [target], cell)["models"]["erased"]["rates"]
        found = dict(plan.sample_sizes[tier])
        assert found.pop("UA_attacked", 0) == (suite.attacks.prompts if tier in suite.attacks.tiers else 0)
        assert found == {rate: figures["n"] for rate, figures in rates.items() if rate != "CRA_included"}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of a base and an erased model, rendered: neon is gone from 29 of 30, and where a tree was asked for once stands a flower."""
    place = tmp_path_factory.mktemp("answers")
    suite = {**yaml.safe_load((SUITES_FOLDER / "pocket.yaml").read_text()), "name": "cut", "published": "unlearncanvas"}
    suite |= {"styles": {s: s for s in ("neon", "sketch", "plain")}, "objects": {o: f"a {o}" for o in ("boat", "tree")}}
    suite |= {"aliases": {}, "gates": {"gone": {"rate": "UA", "at_least": 0.9}, "kept": {"rate": "IRA", "drop_at_most": 0.1}}}
    del suite["attacks"]
    (place / "cut.yaml").write_text(yaml.safe_dump(suite))
    for model, style, thing, seed in product(("base", "erased"), ("neon", "sketch", "plain"), ("boat", "tree"), range(15)):
        gone = model == "erased" and style == "neon" and (thing, seed) != ("boat", 0)
        lost = model == "erased" and (style, thing, seed) == ("sketch", "tree", 0)
        picture = render([ImageSpec("flower" if lost else thing, "plain" if gone else style, seed)])[0]
        (place / model).mkdir(exist_ok=True)
        pixels = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(place / model / f"{style}_{thing}_seed{seed}.png")
    return place


def test_one_number_has_one_interval(answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """UA in result.json, report.json, its gate, the page, junit.xml, the published figures, the board in three forms, and the console."""
    suite = load_suite(str(answers / "cut.yaml"))
    out = tmp_path / "audit"
    result = audit_external_images(answers / "erased", suite, "neon", "style", out, answers / "base")
    capsys.readouterr()
    assert write_report(out, suite.gates, result) == 4
    console = capsys.readouterr().out
    rate = result["models"]["erased"]["rates"]["UA"]
    assert (rate["k"], rate["n"]) == (29, 30)
    bounds = (rate["low"], rate["high"])
    report = json.loads((out / "report.json").read_text())
    told = next(r for r in report["rates"] if r["name"] == "UA")
    gate = next(g for g in report["gates"] if g["rate"] == "UA")
    figure = next(
        r for r in published_figures(suite, [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()], result)["rows"]
    )
    assert (told["erased"]["ci_low"], told["erased"]["ci_high"]) == (gate["low"], gate["high"]) == bounds
    assert (figure["figure"], figure["corrected"]["low"], figure["corrected"]["high"]) == ("UA", *bounds)
    assert told["ci_method"] == gate["method"] == figure["method"] == "Clopper-Pearson"
    words = " to ".join(map(str, outward(*bounds)))
    page = Page((out / "report.html").read_text()).said()
    beside = re.findall(r"(?<!kept )96\.7 %\s*(?:29/30\s*|\(\s*)(\d+\.\d to \d+\.\d)", page)  # the mean of what is kept is another number
    assert len(beside) >= 3 and set(beside) == {words}
    assert f"UA 96.7 % ({words}; 29/30" in console and f"UA is 96.7 % ({words}, n = 30)" in console and format_headline(result) in console
    assert f"UA is 96.7 % ({words}, n = 30)" in (out / "junit.xml").read_text()
    board.write_leaderboard(board.load_rows(tmp_path), tmp_path / "board")  # an answer set is on it too, without a cost
    (line,) = csv.DictReader((tmp_path / "board" / "board.csv").open())
    assert line["unet_forwards"] == line["seconds"] == ""
    assert (float(line["UA_low"]), float(line["UA_high"])) == tuple(round(b, 5) for b in bounds)
    for name in ("board.md", "board.html"):
        assert f"96.7 ({words}; base" in (tmp_path / "board" / name).read_text()


def outward(low: float, high: float) -> tuple[Decimal, Decimal]:
    """Bounds in percent by decimal arithmetic: the lower one down, the upper one up."""
    tenth = Decimal("0.1")
    exact = [100 * Decimal(repr(round(bound, 9))) for bound in (low, high)]
    return exact[0].quantize(tenth, ROUND_FLOOR) + 0, exact[1].quantize(tenth, ROUND_CEILING) + 0


def intervals(of: Any) -> Iterator[tuple[float, float]]:
    """Every interval within a record."""
    if isinstance(of, dict):
        for low, high in (("low", "high"), ("ci_low", "ci_high")):
            if isinstance(of.get(low), float):
                yield of[low], of[high]
        of = list(of.values())
    if isinstance(of, list):
        for part in of:
            yield from intervals(part)


def test_every_printed_bound_is_rounded_one_way(answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the page, in the sentences of report.json, in junit.xml, on the console and the board: a bound has one decimal and one value."""
    suite, out = load_suite(str(answers / "cut.yaml")), tmp_path / "audit"
    result = audit_external_images(answers / "erased", suite, "neon", "style", out, answers / "base")
    result |= {"distance": None, "distances": {}}  # which are no shares
    write_report(out, suite.gates, result)
    board.write_leaderboard(board.load_rows(tmp_path), tmp_path / "board")
    report = json.loads((out / "report.json").read_text())
    rates = result["models"]["erased"]["rates"]
    known = {outward(*bounds) for bounds in [*intervals(result), *intervals(report)]}
    known |= {outward(low / 100, high / 100) for low, high in intervals(report["clip_alignment"])}  # 100 x cosine as it is
    means = [mean_interval(interval_of(side["rates"]["IRA"]), interval_of(side["rates"]["CRA"])) for side in result["models"].values()]
    known |= {outward(both.low, both.high) for both in means}
    texts = {
        "page": Page((out / "report.html").read_text()).said(),
        "chart": (out / "report.html").read_text(),
        "reasons": " ".join(report["verdict"]["reasons"]),
        "junit": (out / "junit.xml").read_text(),
        "console": capsys.readouterr().out,
        "board": (tmp_path / "board" / "board.md").read_text(),
    }
    for name, text in texts.items():
        found = re.findall(r"([−+-]?\d+\.\d) to ([−+-]?\d+\.\d)(?! points)", text)
        assert found and {tuple(Decimal(bound.replace("−", "-")) for bound in pair) for pair in found} <= known, name
    lost = result["paired"]["IRA"]
    (gate,) = [gate for gate in report["gates"] if gate["rate"] == "IRA"]
    low, high = outward(lost["low"], lost["high"])
    assert (gate["low"], gate["high"]) == pytest.approx((-lost["high"], -lost["low"]))
    for name in ("reasons", "junit", "page"):  # the loss that is possible is the upper bound of the drop
        assert f"{-high} to {-low}" in texts[name].replace("−", "-")
        assert name == "reasons" or f"a loss of up to {-low} points" in texts[name]
        assert name == "reasons" or f"up to {100 - outward(rates['UA']['low'], 1)[0]} % (95 % interval) may show it" in texts[name]


def test_what_a_judge_reads_beside_the_suites_labels_is_other(answers: Path, tmp_path: Path) -> None:
    """The judge knows flowers, this suite does not: the picture is counted as lost and stands in the table as something else."""
    suite = load_suite(str(answers / "cut.yaml"))
    result = audit_external_images(answers / "erased", suite, "tree", "object", tmp_path / "audit", answers / "base")
    confusion = result["models"]["erased"]["confusion"]
    assert confusion["labels"] == ["boat", "tree", "none", "other"]
    assert confusion["counts"][1] == [0, 44, 0, 1] and result["models"]["base"]["confusion"]["counts"][1] == [0, 45, 0, 0]
    found = make_report(result, suite.gates)
    assert found["replaced_by"] == [{"label": "tree", "k": 44, "n": 45}, {"label": "other", "k": 1, "n": 45}]
    assert result["models"]["erased"]["rates"]["UA"]["k"] == 1
