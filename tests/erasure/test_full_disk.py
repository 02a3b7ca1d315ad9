"""Files appear complete or not at all: drafts of dead processes are removed, and a full disk costs one line and no work."""

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from app import cli
from erasure.errors import Unfinished, UserError
from erasure.export import export_edit
from erasure.families.stable_diffusion import StableDiffusion
from erasure.storage import files
from erasure.storage.files import clear_dead_parts, open_atomic, open_draft_folder, part_path_of, write_bytes
from erasure.storage.processes import this_process
from eval.auditing.run import audit_plan
from tests import tiny
from tests.command_line import replace_command
from tests.factories import attack_plan
from tests.stopped_runs import reproducible_bytes, run_salun


class FullDiskFile:
    """A file on a disk without room."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def __enter__(self) -> "FullDiskFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """[0, 0]: files opened by `open_atomic` so far, and the number of the one that finds no room."""
    counts, really = [0, 0], Path.open

    def open_counted(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = really(path, mode, *args, **kwargs)
        if mode != "xb":
            return file
        counts[0] += 1
        return FullDiskFile(file) if counts[0] == counts[1] else file  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", open_counted)
    yield counts


def fail_at_every_file(disk: list[int], run: Callable[[Path], object], out: Path, clear: Callable[[], None]) -> int:
    """Run with no room for the first file, for the second, ...; every time the same command must continue. Returns how many files."""
    disk[:] = [0, 0]
    run(out)
    total, expected = disk[0], reproducible_bytes(out)
    for number in range(1, total + 1):
        shutil.rmtree(out)
        clear()
        disk[:] = [0, number]
        with pytest.raises(Unfinished, match=r"no room is left on the disk of .*; make room, then repeat the command"):
            run(out)
        assert not [path for path in out.parent.rglob("*") if path.name.endswith(".part") or ".lock" in path.name]
        disk[1] = 0
        run(out)
        assert reproducible_bytes(out) == expected, number
    return total


def test_an_erasure_continues_after_a_full_disk(
    model: StableDiffusion,
    tmp_path: Path,
    disk: list[int],
    frequent_checkpoints: None,
    own_cache: Path,
) -> None:
    assert fail_at_every_file(disk, lambda out: run_salun(model, out), tmp_path / "out", lambda: shutil.rmtree(own_cache)) >= 10


def test_an_audit_with_attacks_continues_after_a_full_disk(
    pocket_sized_model: StableDiffusion,
    neon_edit: Any,
    tmp_path: Path,
    disk: list[int],
    own_cache: Path,
) -> None:
    plan = attack_plan(neon_edit, {"seed_search": {}, "soft_prefix": {"tokens": 2, "steps": 2, "batch": 2}})
    every = fail_at_every_kind_of_file(
        disk, lambda out: audit_plan(pocket_sized_model, [neon_edit], plan, out), tmp_path / "audit", lambda: shutil.rmtree(own_cache)
    )
    assert {"png", "jsonl", "json", "safetensors"} <= every


def fail_at_every_kind_of_file(disk: list[int], run: Callable[[Path], object], out: Path, clear: Callable[[], None]) -> set[str]:
    """As `fail_at_every_file`, once for every kind of file, since an audit writes hundreds of images."""
    names: list[str] = []
    really = files.part_path_of

    def record_name(path: Path) -> Path:
        names.append(path.name)
        return really(path)

    clear()
    files.part_path_of = record_name
    try:
        run(out)
    finally:
        files.part_path_of = really
    expected = reproducible_bytes(out)
    last = {re.sub(r"[0-9a-f]{8,}|\d+", "*", name): i + 1 for i, name in enumerate(names)}  # *.png, style-*.jsonl, ...
    for number in sorted(set(last.values())):
        shutil.rmtree(out)
        clear()
        disk[:] = [0, number]
        with pytest.raises(Unfinished, match="no room is left"):
            run(out)
        disk[1] = 0
        assert not [path for path in out.parent.rglob("*") if path.name.endswith(".part") or ".lock" in path.name]
        run(out)
        assert reproducible_bytes(out) == expected, number
    return {name.rpartition(".")[2] for name in names}


def test_an_export_appears_completely_or_not_at_all(
    model: StableDiffusion, tmp_path: Path, disk: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = run_salun(model, tmp_path / "run")
    for export_format in ("edit", "folder"):
        out = tmp_path / export_format
        with monkeypatch.context() as patch:
            patch.setattr("erasure.export.write_card", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
            with pytest.raises(Unfinished, match="no room"):
                export_edit(model, edit, export_format, out)
        assert not list(out.iterdir())
        export_edit(model, edit, export_format, out)
        assert (out / "README.md").is_file() and not [path for path in out.iterdir() if path.name.startswith(".")]
        with pytest.raises(UserError, match=r"holds .*, erased with salun; choose another"):
            export_edit(model, edit, export_format, out)


def test_drafts_of_dead_processes_are_removed_and_those_of_the_living_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = this_process()
    dead = [me.mark.rpartition("-")[0] + "-1", me.mark.replace(me.boot_id, "0" * 8)]
    alive = [me.mark, me.mark.replace(me.machine_id, "0" * 8)]
    for mark in (*dead, *alive):
        (tmp_path / f".x.json.{mark}.{'a' * 8}.part").write_text("half")
    (tmp_path / "mine.part").touch()
    draft = tmp_path / f".draft.{dead[0]}.{'b' * 8}.part"
    draft.mkdir()
    (draft / "x").touch()
    monkeypatch.setattr(files, "_cleared_folders", set())
    write_bytes(tmp_path / "y.json", b"{}")  # the first of this process in that folder
    remaining = [f".x.json.{mark}.{'a' * 8}.part" for mark in alive]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*remaining, "mine.part", "y.json"])
    assert clear_dead_parts(tmp_path / "none") == 0


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"before")
    with pytest.raises(KeyError), open_atomic(tmp_path / "x") as file:
        file.write(b"half")
        raise KeyError
    with pytest.raises(KeyError), open_draft_folder(tmp_path / "folder") as draft:
        (draft / "half").touch()
        raise KeyError
    assert (tmp_path / "x").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "x"]
    with pytest.raises(UserError, match="cannot be written"):
        write_bytes(tmp_path / "none" / "x", b"")
    assert len(part_path_of(tmp_path / ("x" * 250)).name) < 200


def test_any_librarys_error_of_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors import SafetensorError

    for error in (
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "quota"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail] . No space left on device"),
    ):
        replace_command(monkeypatch, "methods", lambda _, error=error: (_ for _ in ()).throw(error))
        assert cli.main(["methods"]) == cli.INCOMPLETE
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and "make room, then repeat the command" in message
    replace_command(monkeypatch, "methods", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "other")))
    assert cli.main(["methods"]) == cli.USAGE_ERROR
    assert "other" in capsys.readouterr().err


@pytest.mark.slow
def test_a_really_full_disk(tmp_path: Path) -> None:
    """A file system of 64 MiB: the erasure stops with one line, and continues when there is room."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", small], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    model = tiny.save_pipeline(tmp_path / "model", width=32)
    argv = [sys.executable, "-m", "app.cli", "erase", "--model", str(model), "--concept", "cat", "--steps", "60", "--batch", "2"]
    argv += ["--trajectories", "4", "--trajectory-steps", "4", "--region", "full"]

    def run_erase(out: Path) -> "subprocess.CompletedProcess[str]":
        env = {**os.environ, "ERASURE_CACHE": str(tmp_path / "cache")}
        return subprocess.run([*argv, "--out", str(out)], env=env, capture_output=True, text=True, check=False)

    try:
        assert run_erase(tmp_path / "straight").returncode == 0
        ballast = small / "ballast"
        ballast.write_bytes(b"0" * (2**26 - 200_000))
        stopped = run_erase(small / "run")
        assert stopped.returncode == 2 and "Traceback" not in stopped.stderr
        assert [line for line in stopped.stderr.splitlines() if "no room is left" in line]
        assert not list(small.rglob("*.part")) and not list(small.rglob(".lock*"))
        ballast.unlink()
        again = run_erase(small / "run")
        assert again.returncode == 0, again.stderr
        expected = reproducible_bytes(tmp_path / "straight")
        assert reproducible_bytes(small / "run") == expected
    finally:
        subprocess.run(["umount", small], check=False)
