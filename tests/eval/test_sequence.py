"""Erasure requests one after another: rebounds in planted rows, and real sequences of a tiny model, continued and read back."""

import json
from dataclasses import replace
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
from erasure.storage.files import read_json
from eval.auditing.run import audit_plan
from eval.records.attacks import AttackNotRun
from eval.records.audit_result import AuditResult
from eval.records.axes import Axis
from eval.records.convert import parse_record
from eval.records.models import BASE, ERASED
from eval.records.result_files import read_result
from eval.records.rows import SampleRow
from eval.records.sequence import Rebound, SequenceBase, SequenceRequest, SequenceResult, SequenceSuite, TargetRates
from eval.report import sequence_page
from eval.sequence import (
    INTERVAL_METHODS,
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
from eval.suites.formats import Suite
from eval.suites.suite import SUITES_FOLDER, load_suite
from tests import tiny
from tests.eval.factories import attack_info, audit_result, sample_row
from tests.eval.page import HOSTILE, Page, assert_harmless

NEON, SKETCH, BOAT = SequenceTarget("style", "neon", 1), SequenceTarget("style", "sketch", 2), SequenceTarget("object", "boat", 2)


def rows_of_cell(style: str, object_label: str, shown: int, count: int) -> list[SampleRow]:
    """All images of the base show the style; of the erased model only the last `shown` do."""
    base = [sample_row(BASE, style, object_label, (style, object_label), index=i) for i in range(count)]
    labels = [style if i >= count - shown else "plain" for i in range(count)]
    return base + [sample_row(ERASED, style, object_label, (label, object_label), index=i) for i, label in enumerate(labels)]


def step_after(number: int, **rows: list[SampleRow]) -> SequenceStep:
    return SequenceStep(number, {}, {}, rows)  # type: ignore[arg-type]


def read_sequence(out: Path) -> SequenceResult:
    return parse_record(read_json(out / "sequence.json"), SequenceResult, "sequence.json")


def test_a_rebound_is_named_by_its_whole_interval() -> None:
    """Neon is shown 0, then 1, then 12 of 20 times; sketch 20, then 18 of 20 times, so that more of it is erased."""
    steps = [
        step_after(1, style=rows_of_cell("neon", "tree", 0, 20)),
        step_after(2, style=rows_of_cell("neon", "tree", 1, 20) + rows_of_cell("sketch", "tree", 20, 20)),
        step_after(3, style=rows_of_cell("neon", "tree", 12, 20) + rows_of_cell("sketch", "tree", 18, 20)),
    ]
    neon, sketch = erased_rates(steps, [NEON, SKETCH])
    assert [(rate.request, rate.k, rate.n) for rate in neon.after] == [(1, 20, 20), (2, 19, 20), (3, 8, 20)]
    assert [(rate.request, rate.k, rate.n) for rate in sketch.after] == [(2, 0, 20), (3, 2, 20)]
    assert neon.base and sketch.base and (neon.base.k, sketch.base.k) == (0, 0)
    assert neon.after[0].low == clopper_pearson(20, 20).low
    first, second, third = (rate.change for rate in neon.after)
    assert first is None and second and third
    assert second.rebound is False and second.low < 0 < second.high and second.estimate == pytest.approx(-0.05)
    assert third.rebound and third.high < 0
    assert (third.both, third.later_only, third.earlier_only, third.neither) == (8, 0, 12, 0)
    assert third.p == 2 / 2**12 and third.holm == 3 * third.p
    assert sketch.after[1].change and sketch.after[1].change.rebound is False


def test_a_request_on_the_other_axis_removes_its_images_from_the_pairs() -> None:
    steps = [
        step_after(1, style=rows_of_cell("neon", "tree", 0, 4) + rows_of_cell("neon", "boat", 4, 4)),
        step_after(2, style=rows_of_cell("neon", "tree", 1, 4), object=[]),
    ]
    (neon,) = erased_rates(steps, [NEON])
    assert [(rate.k, rate.n) for rate in neon.after] == [(4, 8), (3, 4)]
    assert neon.after[1].change and neon.after[1].change.estimate == -0.25
    assert rate_change({}, {}) is None


def test_retained_rates_count_what_no_request_erases() -> None:
    """A later request erases sketch, so it counts in no line; plain is excluded; of 4 glass trees 3 stay glass, then 1."""
    other = rows_of_cell("sketch", "tree", 0, 4) + rows_of_cell("plain", "tree", 0, 4)
    steps = [
        step_after(1, style=rows_of_cell("neon", "tree", 0, 9) + other + rows_of_cell("glass", "tree", 3, 4)),
        step_after(2, style=rows_of_cell("neon", "tree", 0, 9) + other + rows_of_cell("glass", "tree", 1, 4)),
    ]
    styles, objects = retained_rates(steps, [NEON, SKETCH], ["plain"])
    assert (styles.rate, styles.axis, styles.base.k, styles.base.n) == ("IRA", "style", 4, 4)
    assert [(rate.k, rate.n, rate.change and rate.change.estimate) for rate in styles.after] == [(3, 4, -0.25), (1, 4, -0.75)]
    assert (objects.rate, [(rate.k, rate.n) for rate in objects.after]) == ("CRA", [(8, 8), (8, 8)])
    both = retained_rates(steps, [NEON, SequenceTarget("object", "tree", 2)], ["plain"])
    assert both == ()  # every prompt asks for something that is erased
    assert [line.rate for line in retained_rates(steps, [NEON, BOAT], ["plain"])] == ["IRA", "IRA"]


def test_a_judge_without_weights_leaves_a_gap() -> None:
    rows = [
        replace(row, scores=replace(row.scores, style=None))
        for row in rows_of_cell("neon", "tree", 0, 3) + rows_of_cell("glass", "tree", 3, 3)
    ]
    (neon,) = erased_rates([step_after(1, style=rows), step_after(2, style=rows)], [NEON])
    assert neon.base is None and neon.after == ()
    assert [line.axis for line in retained_rates([step_after(1, style=rows)], [NEON], [])] == ["object"]


def write_small_suite(path: Path) -> Path:
    """Write the pocket suite cut down to four styles and two objects."""
    record = yaml.safe_load((SUITES_FOLDER / "pocket.yaml").read_text(encoding="utf-8"))
    styles, objects = ("plain", "neon", "sketch", "glass"), ("boat", "tree")
    record |= {"name": "small", "steps": 2, "aliases": {}, "tiers": {"smoke": [3, 1], "standard": [3, 1], "full": [3, 1]}}
    record |= {"styles": {key: record["styles"][key] for key in styles}, "objects": {key: record["objects"][key] for key in objects}}
    path.write_text(yaml.safe_dump({key: value for key, value in record.items() if key != "attacks"}))
    return path


class SavedEdits:
    """A tiny model on disk, a suite, and edits: neon and sketch on the base, glass and boat on top of neon."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder, tiny.save_pipeline(folder / "model", size=16, levels=3)
        self.file = write_small_suite(folder / "small.yaml")
        self.suite: Suite = load_suite(str(self.file))
        model = self.model()
        model.latent_shape = (4, 8, 8)  # quicker, and which weights move does not depend on it
        self.neon = self.edit(model, "neon", "style")
        self.sketch = self.edit(model, "sketch", "style")
        self.glass = self.edit(model, "glass", "style", [self.neon])
        self.boat = self.edit(model, "boat", "object", [self.neon])

    def model(self) -> StableDiffusion:
        model = load_model(str(self.source), dtype="fp32")
        assert isinstance(model, StableDiffusion)
        return model

    def edit(self, model: StableDiffusion, name: str, kind: Any, after: list[Edit] | None = None) -> Edit:
        return erase(model, [Concept(name=name, kind=kind)], UCE(probe_prompts=()), out=self.folder / name, after=after or [])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> SavedEdits:
    folder = tmp_path_factory.mktemp("sequence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASURE_CACHE", str(folder / "cache"))
        return SavedEdits(folder)


def test_the_command_counts_after_every_request(saved: SavedEdits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neon and sketch on the base, glass on top of neon."""
    names = [str(saved.folder / name) for name in ("neon", "sketch", "glass")]
    argv = ["audit", "sequence", *names, "--suite", str(saved.file), "--tier", "smoke", "--dtype", "fp32", "--out", str(tmp_path / "s")]
    code = main(argv)
    console = capsys.readouterr().out
    sequence = read_sequence(tmp_path / "s")
    assert code == (3 if sequence.rebounds else 0)
    assert "| UA neon, erased by 1 | " in console and "| IRA" not in console  # only plain is left, which is excluded
    assert "| CRA, objects that no request erases | " in console
    assert [(target.label, target.request, [rate.n for rate in target.after]) for target in sequence.targets] == [
        ("neon", 1, [6, 6, 6]),
        ("sketch", 2, [6, 6]),
        ("glass", 3, [6]),
    ]
    assert [(line.rate, line.axis, line.base.n) for line in sequence.retained] == [("CRA", "object", 2)]
    assert [request.after for request in sequence.requests] == [(), (), (saved.neon.digest(),)]
    for number in (1, 2, 3):
        result = read_result(tmp_path / "s" / str(number))
        assert len(result.job.edits) == number and (tmp_path / "s" / str(number) / "report.html").is_file()
        for target in sequence.targets[:number]:
            rate = next(rate for rate in target.after if rate.request == number)
            confusion = result.models[ERASED].confusion
            position = confusion.labels.index(target.label)
            row = confusion.counts[position]
            assert rate.k == sum(row) - row[position] and rate.n == sum(row)
    check_page(tmp_path / "s", sequence)


def check_page(out: Path, sequence: SequenceResult) -> None:
    """Check the page of a sequence, as it is and with hostile names."""
    page = Page((out / "sequence.html").read_text(encoding="utf-8"))
    assert_harmless(page)
    assert len([attrs for attrs in page.all("svg") if attrs.get("class") == "chart"]) == 2
    assert "UA here asks by name alone" in page.visible_text() and "EDIT-1 EDIT-2 EDIT-3" in page.visible_text()
    target, request = sequence.targets[0], sequence.requests[0]
    hostile = replace(
        sequence,
        targets=(replace(target, label=HOSTILE), *sequence.targets[1:]),
        requests=(replace(request, concepts=(HOSTILE, *request.concepts[1:]), missing={HOSTILE: HOSTILE}), *sequence.requests[1:]),
        suite=replace(sequence.suite, name=HOSTILE),
        base=replace(sequence.base, source=HOSTILE),
        rebounds=(Rebound(label=HOSTILE, axis="style", request=2),),
    )
    page = Page(sequence_page.write_sequence_page(out, hostile).read_text(encoding="utf-8"))
    assert_harmless(page)
    assert page.visible_text().count("<script>alert(1)</script>") >= 6 and "REBOUND" in page.visible_text()
    assert missing_parts(hostile) == [f"after request 1, {HOSTILE}: {HOSTILE}"]


def test_an_interrupted_sequence_continues_and_the_base_is_generated_once(
    saved: SavedEdits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A style, then an object on top of it: two audits after the second request."""
    model, edits = saved.model(), [saved.neon, saved.boat]
    straight = audit_sequence(model, edits, saved.suite, "smoke", tmp_path / "a")
    assert straight.requests[1].audits == ("2/style", "2/object")
    neon, boat = straight.targets
    assert [rate.n for rate in neon.after] == [6, 3] and [rate.n for rate in boat.after] == [9]
    change = neon.after[1].change
    assert change and change.both + change.later_only + change.earlier_only + change.neither == 3
    assert [(line.rate, line.axis, line.base.n) for line in straight.retained] == [("IRA", "style", 2), ("IRA", "object", 3)]
    timings = [json.loads((tmp_path / "a" / name / "timing.json").read_text()) for name in ("1", "2/style", "2/object")]
    generated = [timing["generated"]["base"] for timing in timings]
    assert generated[0] == 12 and generated[1] == 0  # cells of neon three times, others once; the second audit needs a subset
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "second"))
    calls = []

    def interrupted_audit(*args: Any, **kwargs: Any) -> AuditResult:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return audit_plan(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("eval.sequence.audit_plan", interrupted_audit)
        audit_sequence(model, edits, saved.suite, "smoke", tmp_path / "b")
    assert not (tmp_path / "b" / "sequence.json").exists()
    audit_sequence(model, edits, saved.suite, "smoke", tmp_path / "b")
    assert (tmp_path / "b" / "sequence.json").read_bytes() == (tmp_path / "a" / "sequence.json").read_bytes()


def test_a_rebound_names_its_request_and_a_crash_is_a_missing_part(
    saved: SavedEdits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted labels: neon comes back after the second request, whose attack crashed."""
    attacks = (AttackNotRun(**vars(attack_info("soft")), crashed="out of memory"), AttackNotRun(**vars(attack_info("bell"))))
    crashed: dict[Axis, AuditResult] = {"style": audit_result(attacks=attacks)}
    steps = {
        1: step_after(1, style=rows_of_cell("neon", "tree", 0, 20)),
        2: SequenceStep(2, {}, crashed, {"style": rows_of_cell("neon", "tree", 12, 20) + rows_of_cell("sketch", "tree", 0, 20)}),
    }
    monkeypatch.setattr("eval.sequence.audit_step", lambda _model, edits, *_: steps[len(edits)])
    (tmp_path / "s").mkdir()
    sequence = audit_sequence(saved.model(), [saved.neon, saved.sketch], saved.suite, "smoke", tmp_path / "s")
    assert sequence.rebounds == (Rebound(label="neon", axis="style", request=2),)
    assert missing_parts(sequence) == ["after request 2, soft: out of memory"]
    assert sequence_targets([saved.neon, saved.sketch, saved.neon], saved.suite) == [
        NEON,
        SKETCH,
    ]  # each by the first request that erased it


def test_wrong_orders_are_refused_before_anything_is_generated(saved: SavedEdits, tmp_path: Path) -> None:
    model, out = saved.model(), tmp_path / "out"
    for edits, message in (
        ([saved.sketch, saved.glass, saved.neon], "apply that one first"),
        ([saved.neon], "two edits or more"),
        ([saved.neon, saved.sketch, Edit.load(saved.folder / "neon")], "is duplicated in the sequence"),
    ):
        with pytest.raises(UserError, match=message):
            audit_sequence(model, edits, saved.suite, "smoke", out)
    assert not out.exists()
    out.write_text("")
    with pytest.raises(UserError, match="is a file"):
        audit_sequence(model, [saved.neon, saved.sketch], saved.suite, "smoke", out)


def test_a_missing_part_is_an_empty_cell_of_the_table(saved: SavedEdits) -> None:
    nothing: dict[str, Any] = {"method": "uce", "concepts": (), "edit": "", "after": (), "audits": (), "missing": {}, "crashed": {}}
    sequence = SequenceResult(
        suite=SequenceSuite(name="small", file=None, version=1, tier="smoke"),
        base=SequenceBase(source="", fingerprint="", compute="float32"),
        methods=INTERVAL_METHODS,
        requests=tuple(SequenceRequest(number=number, **nothing) for number in (1, 2)),
        targets=(TargetRates(axis="style", label="neon", request=1, base=None, after=()),),
        retained=(),
        rebounds=(),
    )
    assert format_table(sequence)[2:] == ["| UA neon, erased by 1 | not measured |  |  |"]
    assert default_folder([Path("runs/a"), Path("runs/b")], "pocket", "smoke") == Path("runs/a+b/sequence-pocket-smoke")
