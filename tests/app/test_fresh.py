"""--fresh removes what the command wrote, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli import main
from erasure.concept import Concept
from erasure.erasing import erase
from erasure.loading.loader import load_model
from erasure.methods.uce import UCE
from erasure.storage.run import Run, read_json
from tests.command_line import error_of
from tests.factories import write_one_step_suite

USER_FILES = (
    "mine/notes.txt",
    "notes.txt",
    "images/mine.png",
    "images/base/cat.png",
    "attacks/mine.json",
    "scores/mine.jsonl",
    "result.json.bak",
)


def add_user_files(folder: Path) -> dict[str, str]:
    """Files of somebody else in a run folder, with what is in them."""
    for name in USER_FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return {name: name for name in USER_FILES}


def remaining_user_files(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in USER_FILES if (folder / name).is_file()}


def commands(edit: Path, pocket_sized_base: Path, tmp_path: Path) -> dict[str, tuple[Path, list[str]]]:
    """Every command with --fresh, and the folder it writes to."""
    suite, out = str(write_one_step_suite(tmp_path / "s")), tmp_path / "out"
    options = ["--suite", suite, "--tier", "smoke", "--dtype", "fp32", "--out", str(out)]
    other = tmp_path / "other"
    erase(load_model(str(pocket_sized_base)), [Concept(name="sketch", kind="style")], UCE(), out=other)
    return {
        "erase": (
            out,
            ["erase", "--method", "uce", "--model", str(pocket_sized_base), "--concept", "sketch", "--dtype", "fp32", "--out", str(out)],
        ),
        "audit": (out, ["audit", str(edit), *options]),
        "sequence": (out / "1", ["audit", "sequence", str(edit), str(other), *options]),
    }


@pytest.mark.parametrize("command", ["erase", "audit", "sequence"])
def test_fresh_removes_what_the_command_wrote_and_nothing_else(command: str, edit: Path, pocket_sized_base: Path, tmp_path: Path) -> None:
    folder, argv = commands(edit, pocket_sized_base, tmp_path)[command]
    assert main(argv) in (0, 3, 4)
    mine = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    user_files = add_user_files(folder)
    stale = folder / ("edit.json" if command == "erase" else "samples.jsonl")
    stale.write_text("stale")
    image = next(folder.glob("images/*/*-00.png"), None)
    if image:
        image.write_bytes(b"stale")
    assert main([*argv, "--fresh"]) in (0, 3, 4)
    assert remaining_user_files(folder) == user_files
    assert stale.read_text() != "stale" and (image is None or image.read_bytes() != b"stale")
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == mine | set(USER_FILES)
    Run(folder, read_json(folder / "job.json"), True, _writes(command)).begin()  # all of it is on the list, or it would be here still
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {"job.json", *USER_FILES}


def _writes(command: str) -> tuple[str, ...]:
    from erasure.erasing import OUTPUT_FILES as of_erase
    from eval.auditing.prepare import OUTPUT_FILES as of_audit

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
        output = error_of(["audit", str(edit), "--suite", str(write_one_step_suite(tmp_path / "s")), "--out", str(out), *fresh], capsys)
        assert "choose another --out" in output and "--fresh" not in output
    assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == before
