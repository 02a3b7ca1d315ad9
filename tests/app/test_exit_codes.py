"""No path reaches exit code 0 without the work, and none that looks like PASS without a verdict."""

from pathlib import Path

import pytest
import yaml

from app.cli import main
from app.jobs import queue
from app.jobs.plan import JobSpec
from erasure.concept import Concept
from erasure.edits import Edit
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.loader import load_model
from erasure.methods.uce import UCE
from erasure.storage.run import read_json, write_json
from eval.auditing.plan import AuditPlan
from eval.auditing.run import audit_plan
from eval.comparison import tabulate_comparison
from eval.scoring.judge_scores import available_judges, check_judges_fit
from eval.suites.suite import load_suite
from tests import tiny
from tests.command_line import error_of, report_and_print
from tests.factories import small_suite, write_one_step_suite
from tests.planted import replace_samples


def test_an_edit_without_a_concept_is_not_a_pass(edit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = read_json(edit / "edit.json")
    write_json(edit / "edit.json", {**record, "concepts": []})
    for argv in (["audit", str(edit)], ["audit", str(edit), "--shard", "1/2"], ["audit", str(edit), "--workers", "2"]):
        assert "concepts must have at least 1 item" in error_of([*argv, "--suite", str(write_one_step_suite(tmp_path / "s"))], capsys)
    assert not list(edit.glob("audit-*"))
    spec = JobSpec(edits=(str(edit),), model=record["base"]["source"], suite=str(write_one_step_suite(tmp_path / "s")))
    queue.enqueue(tmp_path / "job", spec)
    assert queue.start_child(tmp_path / "job").wait() == 1
    assert (
        queue.read_progress(tmp_path / "job").state == "failed"
        and "concepts must have at least 1 item" in queue.read_progress(tmp_path / "job").error
    )


def test_a_suite_without_gates_gives_no_verdict(edit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = write_one_step_suite(tmp_path / "s", gates={})
    assert main(["audit", str(edit), "--suite", str(suite), "--tier", "smoke", "--dtype", "fp32"]) == 4
    output = capsys.readouterr().out
    assert "no verdict: suite pocket sets no gates" in output
    assert "INCONCLUSIVE: No gate applies to this audit, so nothing can pass.\nNext: choose a suite or a tier that has gates" in output
    (folder,) = edit.glob("audit-*")
    assert main(["audit", "report", str(folder)]) == 4
    # gates, but none for this tier
    other = write_one_step_suite(tmp_path / "t", gates={"erased": {"rate": "UA", "at_least": 1e-6, "tier": "full"}})
    assert main(["audit", "report", str(folder), "--suite", str(other)]) == 4
    assert "no gate of suite pocket applies to an audit like this one (tier smoke" in capsys.readouterr().out
    passing = write_one_step_suite(tmp_path / "u", gates={"erased": {"rate": "UA", "at_least": 1e-6}})
    assert main(["audit", "report", str(folder), "--suite", str(passing)]) == 0
    assert "PASS: The only gate passed.\nNext: look at the images" in capsys.readouterr().out


def test_a_target_without_any_image_is_refused(pocket_sized_base: Path, tmp_path: Path) -> None:
    """A style of which every object is erased as well leaves no image of it."""
    suite = load_suite(str(write_one_step_suite(tmp_path, objects={"boat": "a boat"})))
    with pytest.raises(UserError, match="no image left that asks for neon: every object of it is erased"):
        AuditPlan.for_concepts(["neon", "boat"], suite, "smoke")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["audit"], "needs the folder of an edit"),
        (["audit", "report", "{}"], "no finished audit at"),
        (["audit", "compare", "{}", "{}"], "no finished audit at"),
        (["audit", "images", "{}", "--suite", "pocket", "--concept", "neon", "--out", "{}/out"], "no image of 90 of 90 cells"),
        (["audit", "sequence"], "needs folders of edits"),
        (["jobs", "leaderboard", "{}"], "no audit below"),
        (["jobs", "status", "{}"], "no job below"),
        (["jobs", "run", "{}/none.yaml"], "none.yaml"),
        (["jobs", "run-one", "{}/spec.json"], "spec.json"),
        (["export", "{}"], ""),
        (["erase", "--concept", "  "], "needs a name"),
    ],
)
def test_a_command_with_nothing_to_do_is_refused(argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in error_of([part.format(tmp_path) for part in argv], capsys)


def test_an_audit_of_images_that_its_judge_cannot_score_generates_none(model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase(model, [Concept(name="neon", kind="style")], UCE(), out=tmp_path / "edit")
    (plan,) = AuditPlan.for_edits([edit], small_suite(), "smoke")
    with pytest.raises(UserError, match=r"takes only images of 64x64 pixels, tiny generates 16x16"):
        audit_plan(model, [edit], plan, tmp_path / "audit")
    assert not (tmp_path / "audit").exists()


def test_a_label_that_a_judge_does_not_have_is_refused(tmp_path: Path) -> None:
    suite = load_suite(str(write_one_step_suite(tmp_path, styles={"plain": "plain", "neon": "neon", "gothick": "gothic"})))
    with pytest.raises(UserError, match="unknown style of suite pocket for its judge pocket_style 'gothick'"):
        available_judges(suite)
    with pytest.raises(UserError, match="gothick"):
        check_judges_fit(StableDiffusion(tiny.pipeline(size=16, levels=3), "tiny", "fp32"), suite)


def test_comparing_nothing_is_refused(edit: Path, pocket_sized_base: Path, tmp_path: Path) -> None:
    model = load_model(str(pocket_sized_base))
    one = Edit.load(edit)
    suite = load_suite(str(write_one_step_suite(tmp_path)))
    (plan,) = AuditPlan.for_edits([one], suite, "smoke")
    result = audit_plan(model, [one], plan, tmp_path / "audit")
    assert report_and_print(tmp_path / "audit", suite.gates, result) in (3, 4)
    replace_samples(tmp_path / "audit", ())
    with pytest.raises(UserError, match="nothing to compare"):
        tabulate_comparison(tmp_path / "audit", tmp_path / "audit")


def test_a_sequence_without_a_grid_is_refused(
    edit: Path, pocket_sized_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text("neon lights\n")
    suite = {"name": "list", "version": 1, "format": "prompt_list", "concept": "neon", "kind": "style", "judge": "pocket_style", "steps": 1}
    suite |= {"guidance": 1.0, "tiers": {t: {"images": 1} for t in ("smoke", "standard", "full")}, "gates": {}, "list": "list.txt"}
    (tmp_path / "list.yaml").write_text(yaml.safe_dump(suite))
    other = tmp_path / "other"
    erase(load_model(str(pocket_sized_base)), [Concept(name="sketch", kind="style")], UCE(), out=other)
    argv = ["audit", "sequence", str(edit), str(other), "--suite", str(tmp_path / "list.yaml"), "--out", str(tmp_path / "out")]
    assert "has no grid" in error_of(argv, capsys)
