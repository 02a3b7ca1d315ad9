"""`--keep-images never`: judged in memory, and no image in any file at any time, cache included."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli import main
from erasure.concept import Concept
from erasure.edits import Edit
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from eval.auditing.plan import AuditPlan
from eval.auditing.prepare import AuditOptions, PreparedAudit, prepare_audit
from eval.auditing.run import generate_and_attack, run_audit
from eval.image_memory import forget_images, has_image, keep_images_in_memory, read_image, write_image
from eval.report.html import write_report
from tests import tiny
from tests.factories import erase_on_small_latents, small_suite, small_suite_record

IMAGE_MARKS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"iVBORw0KGgo", b"data:image/")


class Tracer:
    """Looks into every file below some folders when it is renamed or removed, and at the end into all that are there."""

    def __init__(self) -> None:
        self.folders: list[Path] = []
        self.found: list[str] = []
        self.looked = 0

    def look(self, path: Path) -> None:
        if any(path.is_relative_to(folder) for folder in self.folders) and path.is_file():
            self.looked += 1
            content = path.read_bytes()
            self.found += [str(path) for mark in IMAGE_MARKS if mark in content]

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folders and event in ("os.rename", "os.remove"):
            folder_fd = arguments[2] if event == "os.rename" else arguments[1]
            name = os.fsdecode(arguments[0])
            folder = Path.cwd() if folder_fd in (-1, None) else Path(f"/proc/self/fd/{folder_fd}").readlink()
            self.look(folder / name)

    def finish(self) -> list[str]:
        folders, self.folders = self.folders, []
        for path in (path for folder in folders for path in folder.rglob("*")):
            self.folders = folders
            self.look(path)
        self.folders = []
        return self.found


TRACER = Tracer()
sys.addaudithook(TRACER)  # it cannot be taken out again; without folders it does nothing


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracer]:
    """Trace everything below the test's folder, in which cache and temporary files lie as well."""
    for name in ("cache", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    TRACER.found, TRACER.looked = [], 0
    yield TRACER
    TRACER.folders = []


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> tuple[StableDiffusion, Edit]:
    model = StableDiffusion(tiny.pipeline(size=16, levels=3), "tiny", "fp32")
    return model, erase_on_small_latents(model, [Concept(name="neon", kind="style")], tmp_path_factory.mktemp("edit") / "edit")


def prepare(edited: tuple[StableDiffusion, Edit], out: Path, keep_images: Any, tier: str = "smoke") -> PreparedAudit:
    model, edit = edited
    (plan,) = AuditPlan.for_edits([edit], small_suite(), tier)
    return prepare_audit(model, [edit], plan, out, AuditOptions(keep_images=keep_images))


def audit_and_report(edited: tuple[StableDiffusion, Edit], out: Path, keep_images: Any) -> Any:
    result = run_audit(prepare(edited, out, keep_images))
    write_report(out, result, small_suite().gates)
    return result


@pytest.mark.parametrize("keep_images", ["never", "all", "none"])
def test_no_file_ever_holds_an_image(keep_images: str, edited: tuple[StableDiffusion, Edit], traced: Tracer, tmp_path: Path) -> None:
    traced.folders = [tmp_path]
    audit_and_report(edited, tmp_path / "audit", keep_images)
    found = traced.finish()
    assert traced.looked > 5
    assert bool(found) == (keep_images != "never"), "the tracer sees images where they are written"


def test_the_figures_are_those_of_images_on_disk(edited: tuple[StableDiffusion, Edit], traced: Tracer, tmp_path: Path) -> None:
    kept, never = (audit_and_report(edited, tmp_path / name, name) for name in ("all", "never"))
    assert kept.models == never.models and kept.paired == never.paired
    assert kept.pixel_distance == never.pixel_distance and kept.image_set_distances == never.image_set_distances
    again = audit_and_report(edited, tmp_path / "never", "never")
    assert again == never, "a finished audit is counted from its scores"


def test_attacks_and_shares_of_several_processes_are_refused(edited: tuple[StableDiffusion, Edit], traced: Tracer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tier full of suite pocket has attacks, which record latents"):
        prepare(edited, tmp_path / "audit", "never", "full")
    with pytest.raises(UserError, match="cannot share images that are only in memory"):
        generate_and_attack(prepare(edited, tmp_path / "audit", "never"), (0, 2))
    assert not (tmp_path / "audit" / "images").exists()


def test_the_command_refuses_several_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(small_suite_record()))
    assert main(["audit", str(tmp_path / "edit"), "--keep-images", "never", "--workers", "2"]) == 1
    assert "--keep-images never" in capsys.readouterr().err


def test_a_folder_in_memory_forgets(tmp_path: Path) -> None:
    inside, outside = tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"
    with keep_images_in_memory(tmp_path / "a"):
        write_image(inside, b"1")
        write_image(outside, b"2")
        assert has_image(inside) and read_image(inside) == b"1" and not inside.exists()
        assert outside.read_bytes() == b"2"
        forget_images(tmp_path / "a")
        assert not has_image(inside)
        with pytest.raises(OSError, match="is not in memory"):
            read_image(inside)
        write_image(inside, b"3")
    assert not has_image(inside) and not inside.exists()
