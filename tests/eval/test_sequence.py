"""Requests one after another: rebounds in planted rows, and real sequences of a tiny model, continued and read back."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli import main
from app.commands.audit_sequence import default_folder, format_table
from erasure.concept import Concept
from erasure.edits import Edit
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.loader import load_model
from erasure.methods.uce import UCE
from eval.report import sequence_page
from eval.sequence import (
    SequenceStep,
    SequenceTarget,
    audit_sequence,
    erased_rates,
    missing_parts,
    rate_change,
    retained_rates,
    sequence_targets,
)
from eval.stats.intervals import clopper_pearson
from eval.suites.suite import SUITES_FOLDER, Axis, Suite, load_suite
from tests import tiny
from tests.eval.report.test_html import HOSTILE, Page, harmless

NEON, SKETCH, BOAT = SequenceTarget("style", "neon", 1), SequenceTarget("style", "sketch", 2), SequenceTarget("object", "boat", 2)


def row(model: str, style: str, thing: str, index: int, read: str, seen: str = "") -> dict[str, Any]:
    labels = {"style": {"label": read}, "object": {"label": seen or thing}}
    return {"model": model, "style": style, "object": thing, "index": index, "role": "grid", "variant": "", "read": labels}


def pictures(style: str, thing: str, shown: int, of: int) -> list[dict[str, Any]]:
    """Of the base all as asked; of the erased model the last `shown`."""
    base = [row("base", style, thing, i, style) for i in range(of)]
    return base + [row("erased", style, thing, i, style if i >= of - shown else "plain") for i in range(of)]


def after(number: int, **rows: list[dict[str, Any]]) -> SequenceStep:
    return SequenceStep(number, {}, {}, rows)  # type: ignore[arg-type]


def test_a_rebound_is_named_by_its_whole_interval() -> None:
    """Neon: 0, then 1, then 12 of 20 shown; sketch: 20, then 18 of 20, which is a gain of what was erased."""
    steps = [
        after(1, style=pictures("neon", "tree", 0, 20)),
        after(2, style=pictures("neon", "tree", 1, 20) + pictures("sketch", "tree", 20, 20)),
        after(3, style=pictures("neon", "tree", 12, 20) + pictures("sketch", "tree", 18, 20)),
    ]
    neon, sketch = erased_rates(steps, [NEON, SKETCH])
    assert [(at["request"], at["k"], at["n"]) for at in neon["after"]] == [(1, 20, 20), (2, 19, 20), (3, 8, 20)]
    assert [(at["request"], at["k"], at["n"]) for at in sketch["after"]] == [(2, 0, 20), (3, 2, 20)]
    assert (neon["base"]["k"], sketch["base"]["k"]) == (0, 0)
    assert neon["after"][0]["low"] == clopper_pearson(20, 20).low
    first, second, third = (at["change"] for at in neon["after"])
    assert first is None
    assert not second["rebound"] and second["low"] < 0 < second["high"] and second["estimate"] == pytest.approx(-0.05)
    assert third["rebound"] and third["high"] < 0
    assert (third["both"], third["later_only"], third["earlier_only"], third["neither"]) == (8, 0, 12, 0)
    assert third["p"] == 2 / 2**12 and third["holm"] == 3 * third["p"]
    assert not sketch["after"][1]["change"]["rebound"]


def test_a_request_on_the_other_axis_takes_its_pictures_out_of_the_pairs() -> None:
    steps = [
        after(1, style=pictures("neon", "tree", 0, 4) + pictures("neon", "boat", 4, 4)),
        after(2, style=pictures("neon", "tree", 1, 4), object=[]),
    ]
    (neon,) = erased_rates(steps, [NEON])
    assert [(at["k"], at["n"]) for at in neon["after"]] == [(4, 8), (3, 4)]
    assert neon["after"][1]["change"]["estimate"] == -0.25
    assert rate_change({}, {}) is None


def test_what_is_kept_is_counted_on_what_no_request_erases() -> None:
    """Sketch is erased by a later request, so it counts in no line; plain is apart; of 4 glass trees 3 stay glass, then 1."""
    other = pictures("sketch", "tree", 0, 4) + pictures("plain", "tree", 0, 4)
    steps = [
        after(1, style=pictures("neon", "tree", 0, 9) + other + pictures("glass", "tree", 3, 4)),
        after(2, style=pictures("neon", "tree", 0, 9) + other + pictures("glass", "tree", 1, 4)),
    ]
    styles, objects = retained_rates(steps, [NEON, SKETCH], ["plain"])
    assert (styles["rate"], styles["axis"], styles["base"]["k"], styles["base"]["n"]) == ("IRA", "style", 4, 4)
    assert [(at["k"], at["n"], at["change"]["estimate"]) for at in styles["after"]] == [(3, 4, -0.25), (1, 4, -0.75)]
    assert (objects["rate"], [(at["k"], at["n"]) for at in objects["after"]]) == ("CRA", [(8, 8), (8, 8)])
    both = retained_rates(steps, [NEON, SequenceTarget("object", "tree", 2)], ["plain"])
    assert both == []  # every picture asks for something that is erased
    assert [line["rate"] for line in retained_rates(steps, [NEON, BOAT], ["plain"])] == ["IRA", "IRA"]


def test_a_judge_without_weights_leaves_a_gap() -> None:
    rows = pictures("neon", "tree", 0, 3) + pictures("glass", "tree", 3, 3)
    for r in rows:
        del r["read"]["style"]
    (neon,) = erased_rates([after(1, style=rows), after(2, style=rows)], [NEON])
    assert neon["base"] is None and neon["after"] == []
    assert [line["axis"] for line in retained_rates([after(1, style=rows)], [NEON], [])] == ["object"]


def cut(path: Path) -> Path:
    """The pocket suite cut down, as a file."""
    record = yaml.safe_load((SUITES_FOLDER / "pocket.yaml").read_text(encoding="utf-8"))
    styles, objects = ("plain", "neon", "sketch", "glass"), ("boat", "tree")
    record |= {"name": "small", "steps": 2, "aliases": {}, "tiers": {"smoke": [3, 1], "standard": [3, 1], "full": [3, 1]}}
    record |= {"styles": {key: record["styles"][key] for key in styles}, "objects": {key: record["objects"][key] for key in objects}}
    path.write_text(yaml.safe_dump({key: value for key, value in record.items() if key != "attacks"}))
    return path


class Made:
    """A tiny model on disk, a suite, and edits: neon and sketch on the base, glass and boat on top of neon."""

    def __init__(self, place: Path) -> None:
        self.place, self.source, self.file = place, tiny.save_pipeline(place / "model", size=16, levels=3), cut(place / "small.yaml")
        self.suite: Suite = load_suite(str(self.file))
        model = self.model()
        model.latent_shape = (4, 8, 8)  # quicker, and what moves does not depend on it
        self.neon = self.edit(model, "neon", "style")
        self.sketch = self.edit(model, "sketch", "style")
        self.glass = self.edit(model, "glass", "style", [self.neon])
        self.boat = self.edit(model, "boat", "object", [self.neon])

    def model(self) -> StableDiffusion:
        found = load_model(str(self.source), precision="fp32")
        assert isinstance(found, StableDiffusion)
        return found

    def edit(self, model: StableDiffusion, name: str, kind: Any, after: list[Edit] | None = None) -> Edit:
        return erase(model, [Concept(name=name, kind=kind)], UCE(probe_prompts=()), out=self.place / name, after=after or [])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = tmp_path_factory.mktemp("sequence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASURE_CACHE", str(place / "cache"))
        return Made(place)


def test_the_command_counts_after_every_request(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neon and sketch on the base, glass on top of neon."""
    names = [str(made.place / name) for name in ("neon", "sketch", "glass")]
    argv = ["audit", "sequence", *names, "--suite", str(made.file), "--tier", "smoke", "--dtype", "fp32", "--out", str(tmp_path / "s")]
    code = main(argv)
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "s" / "sequence.json").read_text())
    assert code == (3 if found["rebounds"] else 0)
    assert "| UA neon, erased by 1 | " in said and "| IRA" not in said  # only plain is left, which is apart
    assert "| CRA, objects that no request erases | " in said
    assert [(t["label"], t["request"], [at["n"] for at in t["after"]]) for t in found["targets"]] == [
        ("neon", 1, [6, 6, 6]),
        ("sketch", 2, [6, 6]),
        ("glass", 3, [6]),
    ]
    assert [(line["rate"], line["axis"], line["base"]["n"]) for line in found["kept"]] == [("CRA", "object", 2)]
    assert [r["after"] for r in found["requests"]] == [[], [], [made.neon.digest()]]
    for number in (1, 2, 3):
        result = json.loads((tmp_path / "s" / str(number) / "result.json").read_text())
        assert len(result["job"]["edits"]) == number and (tmp_path / "s" / str(number) / "report.html").is_file()
        for target in found["targets"][:number]:
            at = next(at for at in target["after"] if at["request"] == number)
            counts = result["models"]["erased"]["confusion"]["counts"]
            row = counts[result["models"]["erased"]["confusion"]["labels"].index(target["label"])]
            labels = result["models"]["erased"]["confusion"]["labels"]
            assert at["k"] == sum(row) - row[labels.index(target["label"])] and at["n"] == sum(row)
    page_of(tmp_path / "s", found)


def page_of(out: Path, found: dict[str, Any]) -> None:
    page = Page((out / "sequence.html").read_text(encoding="utf-8"))
    harmless(page)
    assert len([attrs for attrs in page.all("svg") if attrs.get("class") == "chart"]) == 2
    assert "UA here asks by name alone" in page.said() and "EDIT-1 EDIT-2 EDIT-3" in page.said()
    found["targets"][0]["label"] = found["requests"][0]["concepts"][0] = found["suite"]["name"] = found["base"]["source"] = HOSTILE
    found["requests"][0]["missing"] = {HOSTILE: HOSTILE}
    found["rebounds"] = [{"label": HOSTILE, "axis": "style", "request": 2}]
    page = Page(sequence_page.write_sequence_page(out, found).read_text(encoding="utf-8"))
    harmless(page)
    assert page.said().count("<script>alert(1)</script>") >= 6 and "REBOUND" in page.said()
    assert missing_parts(found) == [f"after request 1, {HOSTILE}: {HOSTILE}"]


def test_an_interrupted_sequence_continues_and_the_base_is_drawn_once(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A style, then an object on top of it: two audits after the second request."""
    from eval import sequence as sequencing

    model, edits = made.model(), [made.neon, made.boat]
    straight = audit_sequence(model, edits, made.suite, "smoke", tmp_path / "a")
    assert straight["requests"][1]["audits"] == ["2/style", "2/object"]
    neon, boat = straight["targets"]
    assert [at["n"] for at in neon["after"]] == [6, 3] and [at["n"] for at in boat["after"]] == [9]
    cells = ("both", "later_only", "earlier_only", "neither")
    assert sum(neon["after"][1]["change"][cell] for cell in cells) == 3
    assert [(line["rate"], line["axis"], line["base"]["n"]) for line in straight["kept"]] == [("IRA", "style", 2), ("IRA", "object", 3)]
    drawn = [json.loads((tmp_path / "a" / name / "timing.json").read_text())["drawn"]["base"] for name in ("1", "2/style", "2/object")]
    assert drawn[0] == 12 and drawn[1] == 0  # cells of neon three times, others once; a subset of them
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "second"))
    real, calls = sequencing.audit, []

    def killed(*given: Any, **named: Any) -> dict[str, Any]:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given, **named)

    monkeypatch.setattr(sequencing, "audit", killed)
    with pytest.raises(KeyboardInterrupt):
        audit_sequence(model, edits, made.suite, "smoke", tmp_path / "b")
    assert not (tmp_path / "b" / "sequence.json").exists()
    monkeypatch.setattr(sequencing, "audit", real)
    audit_sequence(model, edits, made.suite, "smoke", tmp_path / "b")
    assert (tmp_path / "b" / "sequence.json").read_bytes() == (tmp_path / "a" / "sequence.json").read_bytes()


def test_a_rebound_names_its_request_and_a_crash_is_a_gap(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted readings: neon comes back after the second request, whose attack crashed."""
    from eval import sequence as sequencing

    crashed: dict[Axis, Any] = {"style": {"missing": {}, "attacks": [{"name": "soft", "crashed": "out of memory"}, {"name": "bell"}]}}
    steps = {
        1: after(1, style=pictures("neon", "tree", 0, 20)),
        2: SequenceStep(2, {}, crashed, {"style": pictures("neon", "tree", 12, 20) + pictures("sketch", "tree", 0, 20)}),
    }
    monkeypatch.setattr(sequencing, "audit_step", lambda _model, edits, *_: steps[len(edits)])
    (tmp_path / "s").mkdir()
    found = audit_sequence(made.model(), [made.neon, made.sketch], made.suite, "smoke", tmp_path / "s")
    assert found["rebounds"] == [{"label": "neon", "axis": "style", "request": 2}]
    assert missing_parts(found) == ["after request 2, soft: out of memory"]
    assert sequence_targets([made.neon, made.sketch, made.neon], made.suite) == [NEON, SKETCH]  # of the first request that erased it


def test_orders_that_do_not_work_are_said_before_anything_is_drawn(made: Made, tmp_path: Path) -> None:
    model, out = made.model(), tmp_path / "out"
    for edits, words in (
        ([made.sketch, made.glass, made.neon], "apply that one first"),
        ([made.neon], "two edits or more"),
        ([made.neon, made.sketch, Edit.load(made.place / "neon")], "is twice in the sequence"),
    ):
        with pytest.raises(UserError, match=words):
            audit_sequence(model, edits, made.suite, "smoke", out)
    assert not out.exists()
    out.write_text("")
    with pytest.raises(UserError, match="is a file"):
        audit_sequence(model, [made.neon, made.sketch], made.suite, "smoke", out)


def test_a_missing_part_is_a_gap_of_the_table(made: Made) -> None:
    axis: Axis = "style"
    target = {"axis": axis, "label": "neon", "request": 1, "base": None, "after": []}
    found = {"requests": [{"number": 1}, {"number": 2}], "targets": [target], "kept": [], "rebounds": []}
    assert format_table(found)[2:] == ["| UA neon, erased by 1 | not read |  |  |"]
    assert default_folder([Path("runs/a"), Path("runs/b")], "pocket", "smoke") == Path("runs/a+b/sequence-pocket-smoke")
