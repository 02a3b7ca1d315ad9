"""Images that another tool generated: file names, faults, rates with and without the base, and the page."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from app.cli import main
from erasure import user_images
from erasure.errors import UserError
from erasure.pocket.canvas import ImageSpec
from erasure.pocket.styles import render
from erasure.storage.files import read_checksummed_json
from eval.external_images import audit_external_images, external_samples, read_external_images
from eval.records.audit_result import AuditResult, ExternalImagesSummary
from eval.records.convert import to_record
from eval.records.gates import Gate
from eval.records.models import BASE, ERASED, AuditedModel
from eval.records.rates import RateName
from eval.report.html import write_report
from eval.report.report_json import SCHEMA
from eval.scoring.recount import load_sample_rows, recount
from eval.suites.formats import GridSuite, JudgeSpec
from eval.suites.suite import load_suite
from tests.eval.page import Page, assert_harmless
from tests.planted import reseal

STYLES, OBJECTS, SEEDS = ("neon", "sketch", "plain"), ("boat", "tree"), (188, 288)
ZERO_SHOT = JudgeSpec("zero_shot", {"templates": ["{}"]})


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> GridSuite:
    record = yaml.safe_load((Path("prompts") / "pocket.yaml").read_text())
    record |= {"name": "images", "published": "unlearncanvas", "aliases": {}, "perturbations": []}
    record |= {"styles": {s: record["styles"][s] for s in STYLES}, "objects": {o: record["objects"][o] for o in OBJECTS}}
    del record["attacks"]
    path = tmp_path_factory.mktemp("suite") / "images.yaml"
    path.write_text(yaml.safe_dump(record))
    return load_grid(path)


def load_grid(path: Path) -> GridSuite:
    suite = load_suite(str(path))
    assert isinstance(suite, GridSuite)
    return suite


@pytest.fixture(scope="module")
def image_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base: every cell as prompted. erased: neon rendered as plain in all images but one, and the tree of a sketch as a boat."""
    folder = tmp_path_factory.mktemp("images")
    for model in ("base", "erased"):
        (folder / model).mkdir()
        for style in STYLES:
            for object_label in OBJECTS:
                for seed in SEEDS:
                    erased = model == "erased" and style == "neon" and (object_label, seed) != ("boat", 188)
                    lost = model == "erased" and (style, object_label) == ("sketch", "tree")
                    image = render([ImageSpec("boat" if lost else object_label, "plain" if erased else style, seed)])[0]
                    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
                    Image.fromarray(pixels).save(folder / model / f"{style}_{object_label}_seed{seed}.png")
    return folder


def copy_of_erased(image_folders: Path, tmp_path: Path) -> Path:
    """A copy of the erased model's folder that a test may change."""
    shutil.copytree(image_folders / "erased", tmp_path / "set")
    return tmp_path / "set"


def rates_of(result: AuditResult, model: AuditedModel = ERASED) -> dict[str, tuple[int, int]]:
    return {name: (rate.k, rate.n) for name, rate in result.models[model].rates.items()}


def test_a_folder_of_images_with_its_base(image_folders: Path, suite: GridSuite, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = audit_external_images(image_folders / "erased", suite, "neon", "style", out, image_folders / "base")
    assert rates_of(result) == {"UA": (3, 4), "IRA": (4, 4), "CRA": (6, 8), "IPA": (4, 4), "CRA_included": (10, 12)}
    assert rates_of(result, BASE) == {"UA": (0, 4), "IRA": (4, 4), "CRA": (8, 8), "IPA": (4, 4), "CRA_included": (12, 12)}
    assert (result.paired[RateName.UA].erased_only, result.paired[RateName.CRA].base_only) == (3, 2)
    retained = [p.name for p in (image_folders / "erased").iterdir() if not p.name.startswith("neon")]
    differences = [
        np.abs(np.subtract(*(np.asarray(Image.open(image_folders / m / name), float) for m in ("base", "erased")))).mean()
        for name in retained
    ]
    assert result.pixel_distance and result.pixel_distance.estimate == pytest.approx(np.mean(differences) / 255, abs=1e-5)
    assert max(differences) > 0 and result.image_set_distances
    parts = result.image_set_distances.parts
    assert {part: distances[ERASED].kid.all.n for part, distances in parts.items()} == {"retained": (8, 8), "target": (4, 4)}
    assert parts["retained"][ERASED].kid.all.value is not None
    assert result.judge_errors and result.judge_errors.positive > 0  # pocket's own judge, which was calibrated
    assert {row.seed for row in load_sample_rows(out)} == set(SEEDS)
    page = Page(write_report(out, result, suite.gates).read_text())
    assert_harmless(page)
    report = report_of(out)
    assert report["suite"]["tier"] == "external" and not any("JPEG" in line for line in report["warnings"])
    assert "paired by name" in " ".join(report["threats_to_validity"])
    assert "erasure audit images DIR --base BASE --suite images.yaml --concept neon --kind style" in page.visible_text()
    assert to_record(recount(out, suite)) == read_checksummed_json(out / "result.json")


def test_without_a_base_nothing_is_paired_and_nothing_crashes(image_folders: Path, suite: GridSuite, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = audit_external_images(image_folders / "erased", suite, "neon", "style", out)
    assert rates_of(result)["UA"] == (3, 4) and list(result.models) == [ERASED]
    assert result.paired == {} and result.pixel_distance is None and result.image_set_distances is None
    page = Page(write_report(out, result, suite.gates).read_text())
    assert_harmless(page)
    report = report_of(out)
    assert report["verdict"]["state"] == "INCONCLUSIVE"
    assert "base" not in report["rates"][0] and "base" not in report["retained_by_label"][0]
    assert any("“retained, same kind” had nothing to measure" in line for line in report["not_measured"])
    text = page.visible_text()
    assert "before :" not in text and "after : neon, boat" in text and "object not shown 2 of 8" in text and "not paired" not in text
    write_report(out, recount(out, suite), [Gate(name="some", rate=RateName.UA, at_least=0.1)])
    assert json.loads((out / "report.json").read_text())["verdict"]["state"] == "PASS"


def test_the_command_counts_a_folder(image_folders: Path, suite: GridSuite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.yaml"
    record = yaml.safe_load((Path("prompts") / "pocket.yaml").read_text())
    record |= {"styles": {s: s for s in STYLES}, "objects": {o: f"a {o}" for o in OBJECTS}, "aliases": {}, "perturbations": [], "gates": {}}
    path.write_text(yaml.safe_dump(record))
    argv = [
        "audit",
        "images",
        str(image_folders / "erased"),
        "--concept",
        "neon",
        "--out",
        str(tmp_path / "out"),
        "--suite",
        str(path),
        "--blur",
    ]
    assert main(argv) == 4  # counted, but without gates there is no verdict
    assert "UA 75.0% (19.4 to 99.4; 3/4), IRA 100.0% (39.7 to 100.0; 4/4), CRA 75.0% (34.9 to 96.9; 6/8)" in capsys.readouterr().out
    page = Page((tmp_path / "out" / "report.html").read_text())
    blurred = [attrs for attrs in page.all("label") if attrs.get("class") == "veil"]
    assert len(blurred) == len(page.all("img")) > 0
    assert main(["audit", "report", str(tmp_path / "out"), "--suite", str(path)]) == 4
    assert not Page((tmp_path / "out" / "report.html").read_text()).all("label")
    assert main(["audit", "report", str(tmp_path / "out"), "--suite", str(path), "--blur"]) == 4
    assert len(Page((tmp_path / "out" / "report.html").read_text()).all("label")) == len(blurred) + 1


def report_of(out: Path) -> dict[str, Any]:
    """Read report.json and check that it fits its schema."""
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    return report


def test_a_report_uses_the_gates_of_its_audit(
    image_folders: Path, suite: GridSuite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a copy of a shipped suite under its name, neither the shipped gates nor judges with another margin are used."""
    path, out = tmp_path / "own.yaml", tmp_path / "out"
    record = yaml.safe_load((Path("prompts") / "pocket.yaml").read_text())
    record |= {"styles": {s: s for s in STYLES}, "objects": {o: f"a {o}" for o in OBJECTS}, "aliases": {}, "perturbations": []}
    judge = {"judge": "zero_shot", "margin": 0.1}
    overrides = {"judges": {"style": judge, "object": "pocket_object"}, "gates": {"own": {"rate": "UA", "at_least": 1e-6}}}
    path.write_text(yaml.safe_dump({**record, **overrides}))
    assert record["name"] == "pocket"
    assert main(["audit", "images", str(image_folders / "erased"), "--concept", "neon", "--out", str(out), "--suite", str(path)]) == 0
    before = (out / "result.json").read_bytes()
    assert main(["audit", "report", str(out)]) == 0
    assert [gate["name"] for gate in json.loads((out / "report.json").read_text())["gates"]] == ["own"]
    path.write_text(yaml.safe_dump({**record, **overrides, "gates": {"hard": {"rate": "UA", "at_least": 1.0}}}))
    assert main(["audit", "report", str(out), "--suite", str(path)]) == 4
    assert (out / "result.json").read_bytes() == before
    own, console = report_of(out), capsys.readouterr().out
    assert own["suite"]["file"] == "own.yaml" and own["thresholds"]["file"] == "own.yaml" and not own["thresholds"]["from_suite"]
    assert f"decided by the thresholds of own.yaml (gates {own['thresholds']['digest']})" in console
    path.write_text(yaml.safe_dump({**record, **overrides}))
    other_suite = tmp_path / "theirs & co.yaml"
    easy = {"easy": {"rate": "UA", "at_least": 1e-9}}
    other_suite.write_text(yaml.safe_dump({**record, **overrides, "gates": easy}))
    assert main(["audit", "report", str(out), "--suite", str(other_suite)]) == 0
    report, page = report_of(out), Page((out / "report.html").read_text())
    digest = report["thresholds"]["digest"]
    assert (
        report["thresholds"] == {"digest": digest, "from_suite": False, "file": "theirs & co.yaml"}
        and digest != own["thresholds"]["digest"]
    )
    text = page.visible_text().replace(" )", ")")
    assert (
        f"theirs & co.yaml (gates {digest}), not by those this audit was made with" in text
        and "suite pocket (own.yaml)" in page.visible_text()
    )
    assert "--suite own.yaml" in page.visible_text() and f"erasure audit report {out} --suite '{other_suite}'" in page.visible_text()
    assert f"thresholds of theirs &amp; co.yaml ({digest})" in (out / "junit.xml").read_text()
    assert (out / "result.json").read_bytes() == before
    assert main(["audit", "report", str(out)]) == 0
    report, page = report_of(out), Page((out / "report.html").read_text())
    assert (
        report["thresholds"]["from_suite"]
        and report["thresholds"]["digest"] in page.visible_text()
        and "not by those" not in page.visible_text()
    )
    assert "thresholds of" not in (out / "junit.xml").read_text() and "pocket (own.yaml)" in (out / "junit.xml").read_text()
    other_suite.write_text(yaml.safe_dump({**record, **overrides, "excluded": []}))
    assert main(["audit", "report", str(out), "--suite", str(other_suite)]) == 0  # the same gates on other rates
    thresholds = report_of(out)["thresholds"]
    assert (
        not thresholds["from_suite"] and thresholds["file"] == "theirs & co.yaml" and thresholds["digest"] != report["thresholds"]["digest"]
    )
    capsys.readouterr()
    for judges, message in (({**judge, "margin": 0.2}, "its margin is 0.1, this one's is 0.2"), ("pocket_style", "another judge of style")):
        path.write_text(yaml.safe_dump({**record, **overrides, "judges": {"style": judges, "object": "pocket_object"}}))
        assert main(["audit", "report", str(out), "--suite", str(path)]) == 1
        assert message in capsys.readouterr().err
    reseal(out, {key: value for key, value in json.loads(before).items() if key != "gates"})
    assert main(["audit", "report", str(out)]) == 1
    assert "does not hold its gates; name the suite with --suite" in capsys.readouterr().err
    assert main(["audit", "report", str(out), "--suite", str(other_suite)]) == 0


def test_the_longest_label_wins(tmp_path: Path) -> None:
    record = yaml.safe_load((Path("prompts") / "pocket.yaml").read_text())
    styles = {"warm": "warm", "warm_love": "warm love", "warm smear": "smear"}
    record |= {"styles": styles, "aliases": {}, "perturbations": [], "excluded": []}
    suites = []
    for objects in ({"boat": "boat"}, {"boat": "boat", "love_boat": "love boat"}):
        (tmp_path / "s.yaml").write_text(yaml.safe_dump({**record, "objects": objects}))
        suites.append(load_grid(tmp_path / "s.yaml"))
    for name in ("warm_boat", "warm_love_boat", "warm_smear_boat"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}_seed1.png")
    cells = {cell: path.name for (cell, _), path in read_external_images(tmp_path, suites[0]).files.items()}
    assert cells[("warm_love", "boat")] == "warm_love_boat_seed1.png" and cells[("warm smear", "boat")] == "warm_smear_boat_seed1.png"
    with pytest.raises(UserError, match="no image of 3 of 6 cells: warm_love_boat, warm_smear_love_boat, warm_love_love_boat"):
        read_external_images(tmp_path, suites[1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "neon_boat_seed188.png").rename(f / "neom_boat_seed188.png"),
            r"neom_boat_seed188.png fits no cell .* as neon_boat_seed0",
        ),
        (lambda f: (f / "neon_boat_seed188.png").rename(f / "neon_boat_188.png"), "neon_boat_188.png fits no cell"),
        (
            lambda f: shutil.copy(f / "neon_boat_seed188.png", f / "neon_boat_seed188.jpg"),
            "seed188.png and neon_boat_seed188.jpg are both neon, boat",
        ),
        (lambda f: [p.unlink() for p in f.glob("*_tree_*")], "no image of 3 of 6 cells: neon_tree, plain_tree, sketch_tree"),
        (lambda f: [p.unlink() for p in f.glob("*")], r"no image of 6 of 6 cells: .* and 1 more"),
        (lambda f: (f / "neon_boat_seed188.png").write_bytes(b"\x89PNG\r\n"), "neon_boat_seed188.png is not a readable image"),
        (lambda f: Image.new("1", (20_000, 6_000)).save(f / "neon_boat_seed188.png"), "neon_boat_seed188.png has 20000 x 6000 pixels"),
    ],
)
def test_faults_of_a_folder_are_named_and_nothing_is_written(
    image_folders: Path, suite: GridSuite, tmp_path: Path, damage: Any, message: str
) -> None:
    folder = copy_of_erased(image_folders, tmp_path)
    damage(folder)
    with pytest.raises(UserError, match=message):
        audit_external_images(folder, suite, "neon", "style", tmp_path / "out")
    assert not (tmp_path / "out").exists() and user_images.MAX_PIXELS < 20_000 * 6_000


def test_a_base_with_other_images_is_refused(image_folders: Path, suite: GridSuite, tmp_path: Path) -> None:
    folder = copy_of_erased(image_folders, tmp_path)
    (folder / "neon_boat_seed188.png").unlink()
    with pytest.raises(UserError, match=r"set lacks 1 images that the other folder has: neon_boat_seed188"):
        audit_external_images(folder, suite, "neon", "style", tmp_path / "out", image_folders / "base")
    with pytest.raises(UserError, match=r"set lacks 1 images that the other folder has: neon_boat_seed188"):
        audit_external_images(image_folders / "erased", suite, "neon", "style", tmp_path / "out", folder)
    with pytest.raises(UserError, match="has no styles and objects"):
        audit_external_images(folder, load_suite("nudity"), "nudity", "nsfw", tmp_path / "out")
    with pytest.raises(UserError, match="Did you mean 'neon'"):
        audit_external_images(folder, suite, "neom", "style", tmp_path / "out")


def test_the_digest_is_of_the_bytes(image_folders: Path, suite: GridSuite, tmp_path: Path) -> None:
    folder = copy_of_erased(image_folders, tmp_path)
    digest, path = read_external_images(folder, suite).digest, folder / "neon_boat_seed188.png"
    assert digest == read_external_images(image_folders / "erased", suite).digest
    Image.open(path).rotate(180).save(path)
    assert read_external_images(folder, suite).digest != digest


def test_jpeg_sizes_and_uneven_cells_are_reported(image_folders: Path, suite: GridSuite, tmp_path: Path) -> None:
    folder = copy_of_erased(image_folders, tmp_path)
    for path in [*folder.glob("sketch_*")]:
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    (folder / "plain_boat_seed188.png").unlink()
    base = tmp_path / "base"
    shutil.copytree(image_folders / "base", base)
    (base / "plain_boat_seed188.png").unlink()
    result = audit_external_images(folder, suite, "neon", "style", tmp_path / "out", base)
    assert result.external_images == ExternalImagesSummary(jpeg_count=4, n=22, sizes=("64 x 64",), per_cell_range=(1, 2), seeds=(188, 288))
    write_report(tmp_path / "out", result, suite.gates)
    warnings = " ".join(json.loads((tmp_path / "out" / "report.json").read_text())["warnings"])
    assert "4 of 22 images are JPEG files" in warnings and "Cells have between 1 and 2 images" in warnings
    samples = external_samples(suite, read_external_images(folder, suite))
    assert [sample.index for sample in samples if (sample.case.style, sample.case.object) == ("plain", "boat")] == [1]


def test_mixed_sizes_are_scored_and_reported(image_folders: Path, suite: GridSuite, tmp_path: Path) -> None:
    mixed = replace(
        suite,
        judges={
            axis: replace(ZERO_SHOT, fields={**ZERO_SHOT.fields, "labels": {label: [label] for label in suite.phrases(axis)}})
            for axis in ("style", "object")
        },
    )
    base = tmp_path / "base"
    shutil.copytree(image_folders / "base", base)  # only one image of the base; no file of the erased model shows it
    Image.open(base / "plain_boat_seed188.png").resize((96, 64)).save(base / "plain_boat_seed188.png")
    result = audit_external_images(image_folders / "erased", mixed, "neon", "style", tmp_path / "out", base)
    assert result.external_images and result.external_images.sizes == ("64 x 64", "96 x 64")
    assert result.pixel_distance is None and result.image_set_distances is None
    assert rates_of(result)["UA"][1] == 4
    write_report(tmp_path / "out", result, suite.gates)
    assert "different sizes (64 x 64, 96 x 64)" in " ".join(json.loads((tmp_path / "out" / "report.json").read_text())["warnings"])


def test_fresh_removes_only_the_files_of_the_audit(image_folders: Path, suite: GridSuite, tmp_path: Path) -> None:
    out = tmp_path / "out"
    audit_external_images(image_folders / "erased", suite, "neon", "style", out)
    users_files = [out / name for name in ("notes.txt", "images/mine.png", "images/erased/cat.png", "scores/mine.jsonl")]
    for path in users_files:
        path.write_text(path.name)
    image = next((out / "images" / "erased").glob("neon-boat-*.png"))
    image.write_bytes(b"stale")
    with pytest.raises(UserError, match=r"holds an audit with suite .*--fresh to start over"):
        audit_external_images(image_folders / "base", suite, "neon", "style", out)
    result = audit_external_images(image_folders / "base", suite, "neon", "style", out, fresh=True)
    assert rates_of(result)["UA"][0] == 0 and image.read_bytes() != b"stale"
    assert [path.read_text() for path in users_files] == [path.name for path in users_files]
