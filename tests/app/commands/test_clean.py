"""erasure clean: what it shows, what it removes, and what it never touches."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.commands.clean import format_size, main
from app.jobs import queue as jobs
from app.jobs.plan import JobSpec
from erasure.concept import Concept
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.storage.files import write_checksummed_json, write_json
from erasure.storage.processes import this_process
from eval.audit import audit
from tests.erasure.storage.test_locks import dead, other_process, plant
from tests.erasure.test_damaged_files import STOP, Stopped, salun
from tests.eval.attack_runs.test_runner import edit, plan_of  # noqa: F401  # a fixture
from tests.eval.test_audit import big  # noqa: F401  # a fixture


def everything(*roots: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_size for root in roots for path in root.rglob("*") if not path.is_dir() or path.is_symlink()}


@pytest.fixture
def runs(model: StableDiffusion, tmp_path: Path) -> Path:
    """A complete erasure, one that was stopped, and what the page has packed."""
    root = tmp_path / "runs"
    salun(model, root / "complete")
    with pytest.raises(Stopped):
        salun(model, root / "stopped", stop=STOP)
    folder = root / "jobs" / "one"
    jobs.enqueue(folder, JobSpec(concepts=(Concept(name="neon"),)))
    salun(model, folder / "edit")
    (folder / "downloads" / "edit").mkdir(parents=True)
    (folder / "downloads" / "one-edit.zip").write_bytes(b"0" * 5000)
    (folder / "downloads" / "edit" / "edit.json").write_bytes(b"{}")
    return root


def test_nothing_is_removed_without_yes(runs: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(runs, own_cache)
    assert main([str(runs)]) == 0
    said = capsys.readouterr().out
    assert everything(runs, own_cache) == before
    assert "erasure: " + str(runs / "stopped") in said and "downloads of a job" in said and "banks" in said
    assert "nothing was removed; --yes removes these" in said
    assert str(runs / "complete") not in said


def test_what_it_says_it_frees_is_what_is_gone(runs: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, gone, stay in (
        ("downloads", runs / "jobs" / "one" / "downloads", own_cache / "banks"),
        ("incomplete", runs / "stopped", own_cache / "banks"),
        ("caches", own_cache / "banks", runs / "complete" / "edit.json"),
    ):
        before = everything(runs, own_cache)
        assert main([str(runs), "--kinds", kind, "--yes"]) == 0
        after = everything(runs, own_cache)
        freed = sum(before.values()) - sum(after.values())
        assert freed > 0 and capsys.readouterr().out.splitlines()[-1] == f"freed {format_size(freed)}"
        assert not gone.exists() and stay.exists()
    for folder in (runs / "complete", runs / "jobs" / "one" / "edit"):
        assert (folder / "edit.safetensors").exists() and (folder / "result.json").exists()
    assert (runs / "jobs" / "one" / "spec.json").exists()  # its erasure is complete
    assert main([str(runs), "--yes"]) == 0
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
    assert main([str(runs), "--yes"]) == 0
    assert "(3 other files stay)" in capsys.readouterr().out
    assert sorted(path.name for path in (runs / "stopped").rglob("*")) == ["mine.txt", "sub", "timing.json", "train.jsonl"]
    assert {path.name for path in outside.iterdir()} == {"job.json", "train.jsonl"} and (runs / "link").is_symlink()
    assert (own_cache / "tensors" / "mine.safetensors").exists()
    assert (runs / "complete" / "edit.json").exists() and (runs / "other" / "job.json").exists()


def test_what_a_living_process_works_on_stays(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = other_process(runs / "stopped")
    try:
        before = everything(runs / "stopped")
        assert main([str(runs), "--yes", "--kinds", "incomplete"]) == 0
        assert f"kept, in use: {runs / 'stopped'} is being written by `a test`, process {other.pid}" in capsys.readouterr().out
        assert everything(runs / "stopped") == before
    finally:
        other.kill()
        other.wait()
    plant(runs / "stopped" / ".lock-1of2", this_process())  # a share
    assert main([str(runs), "--yes", "--kinds", "incomplete"]) == 0
    assert (runs / "stopped" / "job.json").exists()
    plant(runs / "stopped" / ".lock-1of2", dead())
    assert main([str(runs), "--yes", "--kinds", "incomplete"]) == 0
    assert not (runs / "stopped" / "job.json").exists()


def test_jobs_that_wait_stay_and_those_that_failed_go(tmp_path: Path) -> None:
    folders = {}
    for state in ("waiting", "failed", "cancelled", "interrupted", "broken"):
        folder = folders[state] = tmp_path / "runs" / state
        jobs.enqueue(folder, JobSpec(concepts=(Concept(name=state),)))
        (folder / "log.txt").write_text("said")
        (folder / "edit").mkdir()
        write_json(folder / "edit" / "job.json", {"task": "erase", "base": "x"})
    write_checksummed_json(folders["failed"] / "error.json", {"error": "x", "trace": ""})
    (folders["cancelled"] / "cancelled").touch()
    write_checksummed_json(folders["interrupted"] / "claim.json", {"phase": "erasing", "total": 1, "since": 0.0, "first": 0})
    (folders["broken"] / "spec.json").write_text("{")
    (folders["waiting"] / "edit" / "job.json").unlink()
    assert {state: jobs.read_progress(folder).state for state, folder in folders.items()} == {state: state for state in folders}
    assert main([str(tmp_path / "runs"), "--yes"]) == 0
    assert {state for state, folder in folders.items() if folder.exists()} == {"waiting"}
    assert (folders["waiting"] / "spec.json").exists()


def test_leftovers_of_dead_processes_go(tmp_path: Path) -> None:
    gone, living = dead().mark, replace(this_process(), machine_id="0" * 8).mark
    for mark in (gone, living):
        (tmp_path / f".x.json.{mark}.{'a' * 8}.part").touch()
    (tmp_path / f".draft.{gone}.{'b' * 8}.part").mkdir()
    (tmp_path / f".draft.{gone}.{'b' * 8}.part" / "half").write_text("x")
    assert main([str(tmp_path), "--yes", "--kinds", "incomplete"]) == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == [f".x.json.{living}.{'a' * 8}.part"]


def test_an_audit_that_never_ended_goes_and_its_edit_stays(
    big: StableDiffusion,  # noqa: F811
    edit: object,  # noqa: F811
    tmp_path: Path,
) -> None:
    out = tmp_path / "edit" / "audit-pocket-smoke"
    audit(big, [edit], plan_of(edit, {"seed_search": {}, "soft_prefix": {"tokens": 2, "steps": 2, "batch": 2}}), out)  # type: ignore[arg-type,list-item]
    before = everything(tmp_path / "edit")
    assert main([str(tmp_path / "edit"), "--yes", "--kinds", "incomplete"]) == 0
    assert everything(tmp_path / "edit") == before
    (out / "result.json").unlink()
    assert main([str(tmp_path / "edit"), "--yes", "--kinds", "incomplete"]) == 0
    assert not out.exists() and (tmp_path / "edit" / "edit.safetensors").exists()


def test_the_default_folder_may_be_missing_and_another_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    with pytest.raises(UserError, match="is not a folder"):
        main(["nowhere"])
    with pytest.raises(UserError):
        main(["--kinds", "everything"])
    assert not list(tmp_path.iterdir())
