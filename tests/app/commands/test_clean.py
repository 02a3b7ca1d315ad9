"""erasure clean: what it lists, what it removes, and what it never touches."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.commands.clean import format_size
from app.jobs import queue
from app.jobs.plan import JobSpec
from erasure.concept import Concept
from erasure.edits import Edit
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.storage.files import write_checksummed_json, write_json
from erasure.storage.processes import this_process
from eval.auditing.run import audit_plan
from tests.command_line import run_words
from tests.factories import attack_plan
from tests.lock_holders import dead_process, hold_lock_in_child, plant_lock
from tests.stopped_runs import STOP, Stopped, run_salun


def file_sizes(*roots: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_size for root in roots for path in root.rglob("*") if not path.is_dir() or path.is_symlink()}


@pytest.fixture
def runs(model: StableDiffusion, tmp_path: Path) -> Path:
    """A complete erasure, one that was stopped, and what the page has packed."""
    root = tmp_path / "runs"
    run_salun(model, root / "complete")
    with pytest.raises(Stopped):
        run_salun(model, root / "stopped", stop=STOP)
    folder = root / "jobs" / "one"
    queue.enqueue(folder, JobSpec(concepts=(Concept(name="neon"),)))
    run_salun(model, folder / "edit")
    (folder / "downloads" / "edit").mkdir(parents=True)
    (folder / "downloads" / "one-edit.zip").write_bytes(b"0" * 5000)
    (folder / "downloads" / "edit" / "edit.json").write_bytes(b"{}")
    return root


def test_nothing_is_removed_without_yes(runs: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file_sizes(runs, own_cache)
    assert run_words("clean", str(runs)) == 0
    output = capsys.readouterr().out
    assert file_sizes(runs, own_cache) == before
    assert "erasure: " + str(runs / "stopped") in output and "downloads of a job" in output and "teacher-caches" in output
    assert "nothing was removed; --yes removes these" in output
    assert str(runs / "complete") not in output


def test_it_frees_what_it_reports(runs: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, removed, remaining in (
        ("downloads", runs / "jobs" / "one" / "downloads", own_cache / "teacher-caches"),
        ("incomplete", runs / "stopped", own_cache / "teacher-caches"),
        ("caches", own_cache / "teacher-caches", runs / "complete" / "edit.json"),
    ):
        before = file_sizes(runs, own_cache)
        assert run_words("clean", str(runs), "--kinds", kind, "--yes") == 0
        after = file_sizes(runs, own_cache)
        freed = sum(before.values()) - sum(after.values())
        assert freed > 0 and capsys.readouterr().out.splitlines()[-1] == f"freed {format_size(freed)}"
        assert not removed.exists() and remaining.exists()
    for folder in (runs / "complete", runs / "jobs" / "one" / "edit"):
        assert (folder / "edit.safetensors").exists() and (folder / "result.json").exists()
    assert (runs / "jobs" / "one" / "spec.json").exists()  # its erasure is complete
    assert run_words("clean", str(runs), "--yes") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "freed 0 B"


def test_unknown_files_links_and_complete_runs_stay(
    runs: Path, own_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("job.json", "train.jsonl"):
        (outside / name).write_bytes((runs / "stopped" / name).read_bytes())
    (runs / "link").symlink_to(outside)
    (runs / "stopped" / "timing.json").symlink_to(outside / "job.json")
    (runs / "stopped" / "mine.txt").write_text("notes")
    (runs / "stopped" / "sub").mkdir()
    (runs / "stopped" / "sub" / "train.jsonl").write_text("mine as well")
    (own_cache / "tensors").mkdir(exist_ok=True)
    (own_cache / "tensors" / "mine.safetensors").touch()
    (runs / "complete" / "result.json").write_text("{")  # damaged, and yet the end of something
    (runs / "other").mkdir()
    write_json(runs / "other" / "job.json", {"task": "of another program"})
    assert run_words("clean", str(runs), "--yes") == 0
    assert "(3 other files stay)" in capsys.readouterr().out
    assert sorted(path.name for path in (runs / "stopped").rglob("*")) == ["mine.txt", "sub", "timing.json", "train.jsonl"]
    assert {path.name for path in outside.iterdir()} == {"job.json", "train.jsonl"} and (runs / "link").is_symlink()
    assert (own_cache / "tensors" / "mine.safetensors").exists()
    assert (runs / "complete" / "edit.json").exists() and (runs / "other" / "job.json").exists()


def test_folders_of_living_processes_stay(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = hold_lock_in_child(runs / "stopped")
    try:
        before = file_sizes(runs / "stopped")
        assert run_words("clean", str(runs), "--yes", "--kinds", "incomplete") == 0
        assert f"kept, in use: {runs / 'stopped'} is being written by `a test`, process {other.pid}" in capsys.readouterr().out
        assert file_sizes(runs / "stopped") == before
    finally:
        other.kill()
        other.wait()
    plant_lock(runs / "stopped" / ".lock-1of2", this_process())  # a shard
    assert run_words("clean", str(runs), "--yes", "--kinds", "incomplete") == 0
    assert (runs / "stopped" / "job.json").exists()
    plant_lock(runs / "stopped" / ".lock-1of2", dead_process())
    assert run_words("clean", str(runs), "--yes", "--kinds", "incomplete") == 0
    assert not (runs / "stopped" / "job.json").exists()


def test_jobs_that_wait_stay_and_those_that_failed_go(tmp_path: Path) -> None:
    folders = {}
    for state in ("waiting", "failed", "cancelled", "interrupted", "broken"):
        folder = folders[state] = tmp_path / "runs" / state
        queue.enqueue(folder, JobSpec(concepts=(Concept(name=state),)))
        (folder / "log.txt").write_text("a line")
        (folder / "edit").mkdir()
        write_json(folder / "edit" / "job.json", {"task": "erase", "base": "x"})
    write_checksummed_json(folders["failed"] / "error.json", {"error": "x", "trace": ""})
    (folders["cancelled"] / "cancelled").touch()
    write_checksummed_json(folders["interrupted"] / "claim.json", {"phase": "erasing", "total": 1, "started_at": 0.0, "done_before": 0})
    (folders["broken"] / "spec.json").write_text("{")
    (folders["waiting"] / "edit" / "job.json").unlink()
    assert {state: queue.read_progress(folder).state for state, folder in folders.items()} == {state: state for state in folders}
    assert run_words("clean", str(tmp_path / "runs"), "--yes") == 0
    assert {state for state, folder in folders.items() if folder.exists()} == {"waiting"}
    assert (folders["waiting"] / "spec.json").exists()


def test_leftovers_of_dead_processes_go(tmp_path: Path) -> None:
    removed, living = dead_process().mark, replace(this_process(), machine_id="0" * 8).mark
    for mark in (removed, living):
        (tmp_path / f".x.json.{mark}.{'a' * 8}.part").touch()
    (tmp_path / f".draft.{removed}.{'b' * 8}.part").mkdir()
    (tmp_path / f".draft.{removed}.{'b' * 8}.part" / "half").write_text("x")
    assert run_words("clean", str(tmp_path), "--yes", "--kinds", "incomplete") == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == [f".x.json.{living}.{'a' * 8}.part"]


def test_an_audit_that_never_ended_goes_and_its_edit_stays(
    pocket_sized_model: StableDiffusion,
    neon_edit: Edit,
    tmp_path: Path,
) -> None:
    out = tmp_path / "edit" / "audit-pocket-smoke"
    audit_plan(
        pocket_sized_model,
        [neon_edit],
        attack_plan(neon_edit, {"seed_search": {}, "soft_prefix": {"tokens": 2, "steps": 2, "batch": 2}}),
        out,
    )
    before = file_sizes(tmp_path / "edit")
    assert run_words("clean", str(tmp_path / "edit"), "--yes", "--kinds", "incomplete") == 0
    assert file_sizes(tmp_path / "edit") == before
    (out / "result.json").unlink()
    assert run_words("clean", str(tmp_path / "edit"), "--yes", "--kinds", "incomplete") == 0
    assert not out.exists() and (tmp_path / "edit" / "edit.safetensors").exists()


def test_the_default_folder_may_be_missing_and_another_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_words("clean") == 0
    with pytest.raises(UserError, match="is not a folder"):
        run_words("clean", "nowhere")
    with pytest.raises(UserError):
        run_words("clean", "--kinds", "everything")
    assert not list(tmp_path.iterdir())
