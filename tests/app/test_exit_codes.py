"""No path reaches exit code 0 without the work, and none that is read as PASS without a verdict."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli import main
from app.commands.audit import write_report
from app.commands.jobs import main as jobs_main
from app.jobs import queue as jobs
from app.jobs.audit_outcomes import load_outcomes, summarize_verdicts, worst_exit_code
from app.jobs.execution import plan_audits
from app.jobs.plan import JobSpec, load_plan
from erasure.concept import Concept
from erasure.edits import Edit
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.loader import load_model
from erasure.methods.uce import UCE
from erasure.storage.run import Run, read_json, write_json
from eval.audit import AuditPlan, audit
from eval.compare import tabulate_comparison
from eval.scoring.judge_scores import available_judges, check_judges_fit
from eval.suites.suite import SUITES_FOLDER, load_suite
from tests import tiny
from tests.eval.test_audit import tiny_suite
from tests.planted import replace_samples, reseal

SMALL: dict[str, Any] = {
    "styles": {"plain": "plain", "neon": "neon", "sketch": "sketch"},
    "objects": {"boat": "a boat", "tree": "a tree"},
    "aliases": {},
    "mutations": [],
    "steps": 1,
    "tiers": {tier: [1, 1] for tier in ("smoke", "standard", "full")},
}


def suite_file(place: Path, **change: Any) -> Path:
    record = yaml.safe_load((SUITES_FOLDER / "pocket.yaml").read_text())
    del record["attacks"]
    place.mkdir(parents=True, exist_ok=True)
    (place / "suite.yaml").write_text(yaml.safe_dump({**record, **SMALL, **change}))
    return place / "suite.yaml"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline whose pictures have pocket's size."""
    return tiny.save_pipeline(tmp_path_factory.mktemp("base") / "tiny", size=16, levels=3)


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An edit of neon on it."""
    out = tmp_path_factory.mktemp("made") / "edit"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERASURE_CACHE", str(out.parent / "cache"))
        erase(load_model(str(base)), [Concept(name="neon", kind="style")], UCE(), out=out)
    return out


@pytest.fixture
def edit(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "edit"))


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run, expect exit code 1 and a complaint in one line."""
    capsys.readouterr()
    assert main(argv) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("erasure: ")]
    return line


def test_an_edit_that_names_no_concept_is_no_pass(edit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = read_json(edit / "edit.json")
    write_json(edit / "edit.json", {**record, "concepts": []})
    for argv in (["audit", str(edit)], ["audit", str(edit), "--shard", "1/2"], ["audit", str(edit), "--workers", "2"]):
        assert "concepts must have at least 1 item" in refused([*argv, "--suite", str(suite_file(tmp_path / "s"))], capsys)
    assert not list(edit.glob("audit-*"))
    spec = JobSpec(edits=(str(edit),), model=record["base"]["source"], suite=str(suite_file(tmp_path / "s")))
    jobs.enqueue(tmp_path / "job", spec)
    assert jobs.start_child(tmp_path / "job").wait() == 1
    assert (
        jobs.read_progress(tmp_path / "job").state == "failed"
        and "concepts must have at least 1 item" in jobs.read_progress(tmp_path / "job").error
    )


def test_a_suite_without_gates_gives_no_verdict(edit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = suite_file(tmp_path / "s", gates={})
    assert main(["audit", str(edit), "--suite", str(suite), "--tier", "smoke", "--dtype", "fp32"]) == 4
    said = capsys.readouterr().out
    assert "no verdict: suite pocket sets no gates" in said and said.rstrip().endswith("INCONCLUSIVE")
    (folder,) = edit.glob("audit-*")
    assert main(["audit", "report", str(folder)]) == 4
    # gates, but none that is asked in this tier
    other = suite_file(tmp_path / "t", gates={"gone": {"rate": "UA", "at_least": 1e-6, "tier": "full"}})
    assert main(["audit", "report", str(folder), "--suite", str(other)]) == 4
    assert "asks none of its gates of an audit like this one (tier smoke" in capsys.readouterr().out
    passing = suite_file(tmp_path / "u", gates={"gone": {"rate": "UA", "at_least": 1e-6}})
    assert main(["audit", "report", str(folder), "--suite", str(passing)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("PASS")


def test_pictures_of_what_is_erased_on_both_axes_are_missed(base: Path, tmp_path: Path) -> None:
    """A style of which every object is erased as well leaves no picture that asks for it."""
    suite = load_suite(str(suite_file(tmp_path, objects={"boat": "a boat"})))
    with pytest.raises(UserError, match="no picture left that asks for neon: every object of it is erased"):
        AuditPlan.for_concepts(["neon", "boat"], suite, "smoke")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["audit"], "needs the folder of an edit"),
        (["audit", "report", "{}"], "no finished audit at"),
        (["audit", "compare", "{}", "{}"], "no finished audit at"),
        (["audit", "answers", "{}", "--suite", "pocket", "--concept", "neon", "--out", "{}/out"], "no picture of 90 of 90 cells"),
        (["audit", "sequence"], "needs folders of edits"),
        (["jobs", "board", "{}"], "no audit below"),
        (["jobs", "status", "{}"], "no job below"),
        (["jobs", "run", "{}/none.yaml"], "none.yaml"),
        (["jobs", "run-one", "{}/spec.json"], "spec.json"),
        (["export", "{}"], ""),
        (["erase", "--concept", "  "], "needs a name"),
    ],
)
def test_nothing_to_do_is_not_done(argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refused([part.format(tmp_path) for part in argv], capsys)


@pytest.mark.parametrize("empty", [{"method": []}, {"seed": []}, {"fields": {"lr": []}}, {"concept": []}, {"suite": []}])
def test_a_plan_of_no_job_is_refused(empty: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"jobs": [{"concept": "neon", **empty}]}))
    with pytest.raises(UserError, match=r"asks for no job|names no concept"):
        load_plan(tmp_path / "plan.yaml")
    (tmp_path / "spec.json").write_text(json.dumps({"edits": ["x"]}))
    with pytest.raises(UserError, match="no suite to audit them with"):
        JobSpec.load(tmp_path / "spec.json")


def finished_job(folder: Path, *states: str, missing: bool = False) -> None:
    """The folder of a job that is done, with audits that say this."""
    names = [f"audit-{i}" for i in range(len(states))]
    for name, state in zip(names, states, strict=True):
        (folder / name).mkdir(parents=True)
        write_json(folder / name / "report.json", {"verdict": {"state": state}})
        reseal(folder / name, {"missing": {"style": "no weights"} if missing else {}, "attacks": []})
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "done.json", {"audits": names, "edits": [], "seconds": 1.0})


@pytest.mark.parametrize(
    ("states", "code", "words"),
    [
        ([("PASS",), ("PASS",)], 0, "2 of 2 jobs done; audits: 2 PASS"),
        ([("PASS",), ("FAIL", "PASS")], 3, "2 of 2 jobs done; audits: 2 PASS, 1 FAIL"),
        ([("PASS",), ("INCONCLUSIVE",)], 4, "audits: 1 PASS, 1 INCONCLUSIVE"),
        ([("FAIL",), ("INCONCLUSIVE",)], 3, "audits: 1 FAIL, 1 INCONCLUSIVE"),
        ([(), ()], 0, "2 of 2 jobs done; no audit was asked for, so there is no verdict"),
    ],
)
def test_jobs_that_are_all_skipped_tell_their_verdicts(
    states: list[tuple[str, ...]], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_file = tmp_path / "plan.yaml"
    plan_file.write_text(yaml.safe_dump({"out": str(tmp_path / "out"), "jobs": [{"concept": "neon", "seed": [0, 1]}]}))
    plan = load_plan(plan_file)
    for spec, said in zip(plan.jobs, states, strict=True):
        finished_job(plan.folder(spec), *said)
    assert jobs_main(["run", str(plan_file)]) == code
    told = capsys.readouterr()
    assert words in told.out
    assert told.err.count("report.html") == sum(state != "PASS" for said in states for state in said)
    for spec in plan.jobs:
        jobs.enqueue(plan.folder(spec), spec)
    assert jobs_main(["status", str(plan_file)]) == 0
    assert all(state in capsys.readouterr().out for state in states[0][:1])


def test_an_incomplete_or_unreadable_audit_of_a_job_is_no_pass(tmp_path: Path) -> None:
    finished_job(tmp_path / "a", "FAIL", missing=True)
    finished_job(tmp_path / "b", "PASS")
    (tmp_path / "b" / "audit-0" / "report.json").write_text("{")
    assert [o.code for name in ("a", "b") for o in load_outcomes(tmp_path / name)] == [2, 2]
    assert summarize_verdicts(load_outcomes(tmp_path / "a")) == "audits: 1 INCOMPLETE, FAIL"
    assert load_outcomes(tmp_path / "c") == []
    assert [worst_exit_code(codes) for codes in ([], [0, 4], [4, 2], [2, 3, 4])] == [0, 4, 2, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"suite": "pockett"}, "Did you mean 'pocket'"),
        ({"suite": "sd"}, "unknown concept for suite sd 'neon'"),
        ({"suite": "nudity"}, "unknown concept for suite nudity 'neon'"),
        ({"suite": "unlearndiffatk", "concept": {"name": "nudity", "kind": "nsfw"}}, "ships no prompts"),
        ({"suite": "small"}, "of suite pocket reads pictures of 64x64 pixels alone"),
    ],
)
def test_a_wrong_suite_is_found_before_the_erasure(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    """By run, by run --dry-run, and by the job's own process; nothing is erased."""
    model = tiny.save_pipeline(tmp_path / "small")
    change = {**change, "suite": str(suite_file(tmp_path)) if change["suite"] == "small" else change["suite"]}
    plan_file = tmp_path / "plan.yaml"
    entry = {"concept": "neon", "method": "uce", **change}
    plan_file.write_text(yaml.safe_dump({"model": str(model), "out": str(tmp_path / "out"), "jobs": [entry]}))
    plan = load_plan(plan_file)
    with pytest.raises(UserError, match=words):
        jobs_main(["run", str(plan_file), "--dry-run"])
    with pytest.raises(UserError, match=words):
        plan_audits(load_model(str(model)), plan.jobs[0])
    if "64x64" not in words:  # which needs the model, and so the job's own process
        with pytest.raises(UserError, match=words):
            jobs_main(["run", str(plan_file)])
        assert not (tmp_path / "out").exists()


def test_an_audit_of_pictures_that_its_judge_cannot_read_draws_none(model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase(model, [Concept(name="neon", kind="style")], UCE(), out=tmp_path / "edit")
    (plan,) = AuditPlan.for_edits([edit], tiny_suite(), "smoke")
    with pytest.raises(UserError, match=r"reads pictures of 64x64 pixels alone, tiny draws 16x16"):
        audit(model, [edit], plan, tmp_path / "audit")
    assert not (tmp_path / "audit").exists()


def test_a_label_that_a_judge_never_says_is_refused(tmp_path: Path) -> None:
    suite = load_suite(str(suite_file(tmp_path, styles={"plain": "plain", "neon": "neon", "gothick": "gothic"})))
    with pytest.raises(UserError, match="unknown style of suite pocket for its judge pocket_style 'gothick'"):
        available_judges(suite)
    with pytest.raises(UserError, match="gothick"):
        check_judges_fit(StableDiffusion(tiny.pipeline(size=16, levels=3), "tiny", "fp32"), suite)


def test_comparing_nothing_is_refused(edit: Path, base: Path, tmp_path: Path) -> None:
    model = load_model(str(base))
    one = Edit.load(edit)
    suite = load_suite(str(suite_file(tmp_path)))
    (plan,) = AuditPlan.for_edits([one], suite, "smoke")
    result = audit(model, [one], plan, tmp_path / "audit")
    assert write_report(tmp_path / "audit", suite.gates, result) in (3, 4)
    replace_samples(tmp_path / "audit" / "samples.jsonl", "")
    with pytest.raises(UserError, match="nothing to compare"):
        tabulate_comparison(tmp_path / "audit", tmp_path / "audit")


def test_a_sequence_without_a_grid_is_refused(edit: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text("neon lights\n")
    suite = {"name": "list", "version": 1, "form": "prompts", "concept": "neon", "kind": "style", "judge": "pocket_style", "steps": 1}
    suite |= {"guidance": 1.0, "tiers": {t: {"pictures": 1} for t in ("smoke", "standard", "full")}, "gates": {}, "list": "list.txt"}
    (tmp_path / "list.yaml").write_text(yaml.safe_dump(suite))
    other = tmp_path / "other"
    erase(load_model(str(base)), [Concept(name="sketch", kind="style")], UCE(), out=other)
    argv = ["audit", "sequence", str(edit), str(other), "--suite", str(tmp_path / "list.yaml"), "--out", str(tmp_path / "out")]
    assert "has no grid" in refused(argv, capsys)


NOTES = (
    "mine/notes.txt",
    "notes.txt",
    "images/mine.png",
    "images/base/cat.png",
    "attacks/mine.json",
    "readings/mine.jsonl",
    "result.json.bak",
)


def visited(folder: Path) -> dict[str, str]:
    """Files of somebody else in a run folder, with what is in them."""
    for name in NOTES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return {name: name for name in NOTES}


def left(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in NOTES if (folder / name).is_file()}


def commands(edit: Path, base: Path, tmp_path: Path) -> dict[str, tuple[Path, list[str]]]:
    """Every command with --fresh, and the folder it writes to."""
    suite, out = str(suite_file(tmp_path / "s")), tmp_path / "out"
    drawn = ["--suite", suite, "--tier", "smoke", "--dtype", "fp32", "--out", str(out)]
    other = tmp_path / "other"
    erase(load_model(str(base)), [Concept(name="sketch", kind="style")], UCE(), out=other)
    return {
        "erase": (out, ["erase", "--method", "uce", "--model", str(base), "--concept", "sketch", "--dtype", "fp32", "--out", str(out)]),
        "audit": (out, ["audit", str(edit), *drawn]),
        "sequence": (out / "1", ["audit", "sequence", str(edit), str(other), *drawn]),
    }


@pytest.mark.parametrize("command", ["erase", "audit", "sequence"])
def test_fresh_removes_what_the_command_wrote_and_nothing_else(command: str, edit: Path, base: Path, tmp_path: Path) -> None:
    folder, argv = commands(edit, base, tmp_path)[command]
    assert main(argv) in (0, 3, 4)
    mine = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    foreign = visited(folder)
    stale = folder / ("edit.json" if command == "erase" else "samples.jsonl")
    stale.write_text("stale")
    picture = next(folder.glob("images/*/*-00.png"), None)
    if picture:
        picture.write_bytes(b"stale")
    assert main([*argv, "--fresh"]) in (0, 3, 4)
    assert left(folder) == foreign
    assert stale.read_text() != "stale" and (picture is None or picture.read_bytes() != b"stale")
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == mine | set(NOTES)
    Run(folder, read_json(folder / "job.json"), True, _writes(command)).begin()  # all of it is on the list, or it would be here still
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {"job.json", *NOTES}


def _writes(command: str) -> tuple[str, ...]:
    from erasure.erasing import OUTPUT_FILES as of_erase
    from eval.audit import OUTPUT_FILES as of_audit

    return of_erase if command == "erase" else of_audit


@pytest.mark.parametrize("where", [lambda edit: edit, lambda edit: edit.parent / "mine"])
def test_fresh_never_takes_an_edit_for_an_audit(
    where: Callable[[Path], Path], edit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = where(edit)
    if out != edit:
        out.mkdir()
        (out / "thesis.txt").write_text("x")
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    for fresh in ([], ["--fresh"]):
        said = refused(["audit", str(edit), "--suite", str(suite_file(tmp_path / "s")), "--out", str(out), *fresh], capsys)
        assert "choose another --out" in said and "--fresh" not in said
    assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == before
