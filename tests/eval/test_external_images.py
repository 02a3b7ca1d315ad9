"""Pictures that another tool drew: names, what is wrong with them, rates with and without the base, and the page."""

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from app.cli import main
from erasure import user_images as photos
from erasure.errors import UserError
from erasure.pocket.canvas import ImageSpec, render
from erasure.storage.files import read_checksummed_json
from eval.external_images import audit_external_images, external_samples, read_external_images
from eval.report.html import write_report
from eval.report.report_json import SCHEMA
from eval.scoring.gates import Gate
from eval.scoring.recount import recount
from eval.suites.suite import Suite, load_suite
from tests.eval.report.test_html import Page, harmless
from tests.planted import reseal

STYLES, OBJECTS, SEEDS = ("neon", "sketch", "plain"), ("boat", "tree"), (188, 288)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    record = yaml.safe_load((Path("prompts") / "pocket.yaml").read_text())
    record |= {"name": "answers", "published": "unlearncanvas", "aliases": {}, "mutations": []}
    record |= {"styles": {s: record["styles"][s] for s in STYLES}, "objects": {o: record["objects"][o] for o in OBJECTS}}
    del record["attacks"]
    path = tmp_path_factory.mktemp("suite") / "answers.yaml"
    path.write_text(yaml.safe_dump(record))
    return load_suite(str(path))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base: every cell as asked. erased: neon drawn as plain, except one picture; the tree of a sketch drawn as a boat."""
    place = tmp_path_factory.mktemp("drawn")
    for model in ("base", "erased"):
        (place / model).mkdir()
        for style in STYLES:
            for thing in OBJECTS:
                for seed in SEEDS:
                    gone = model == "erased" and style == "neon" and (thing, seed) != ("boat", 188)
                    lost = model == "erased" and (style, thing) == ("sketch", "tree")
                    picture = render([ImageSpec("boat" if lost else thing, "plain" if gone else style, seed)])[0]
                    pixels = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
                    Image.fromarray(pixels).save(place / model / f"{style}_{thing}_seed{seed}.png")
    return place


def changed(drawn: Path, tmp_path: Path) -> Path:
    shutil.copytree(drawn / "erased", tmp_path / "set")
    return tmp_path / "set"


def rates_of(result: dict[str, Any], model: str = "erased") -> dict[str, tuple[int, int]]:
    return {name: (r["k"], r["n"]) for name, r in result["models"][model]["rates"].items()}


def test_an_answer_set_with_its_base(drawn: Path, suite: Suite, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = audit_external_images(drawn / "erased", suite, "neon", "style", out, drawn / "base")
    assert rates_of(result) == {"UA": (3, 4), "IRA": (4, 4), "CRA": (6, 8), "IPA": (4, 4), "CRA_included": (10, 12)}
    assert rates_of(result, "base") == {"UA": (0, 4), "IRA": (4, 4), "CRA": (8, 8), "IPA": (4, 4), "CRA_included": (12, 12)}
    assert (result["paired"]["UA"]["erased_only"], result["paired"]["CRA"]["base_only"]) == (3, 2)
    kept = [p.name for p in (drawn / "erased").iterdir() if not p.name.startswith("neon")]
    apart = [np.abs(np.subtract(*(np.asarray(Image.open(drawn / m / name), float) for m in ("base", "erased")))).mean() for name in kept]
    assert result["distance"]["estimate"] == pytest.approx(np.mean(apart) / 255, abs=1e-5) and max(apart) > 0
    parts = result["distances"]["parts"]
    assert {part: of["erased"]["kid"]["all"]["n"] for part, of in parts.items()} == {"kept": [8, 8], "target": [4, 4]}
    assert parts["kept"]["erased"]["kid"]["all"]["value"] is not None
    assert result["errors"]["positive"] > 0  # pocket's own judge, which was measured
    assert {row["seed"] for row in map(json.loads, (out / "samples.jsonl").read_text().splitlines())} == set(SEEDS)
    page = Page(write_report(out, result, suite.gates).read_text())
    harmless(page)
    found = json.loads((out / "report.json").read_text())
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    assert found["suite"]["tier"] == "answers" and not any("JPEG" in line for line in found["doubts"])
    assert "paired by name" in " ".join(found["threats_to_validity"])
    assert "erasure audit answers DIR --base BASE --suite answers.yaml --concept neon --kind style" in page.said()
    assert recount(out, suite) == read_checksummed_json(out / "result.json")


def test_without_a_base_nothing_is_paired_and_nothing_crashes(drawn: Path, suite: Suite, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = audit_external_images(drawn / "erased", suite, "neon", "style", out)
    assert rates_of(result)["UA"] == (3, 4) and list(result["models"]) == ["erased"]
    assert result["paired"] == {} and result["distance"] is None and result["distances"] == {}
    page = Page(write_report(out, result, suite.gates).read_text())
    harmless(page)
    found = json.loads((out / "report.json").read_text())
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    assert found["verdict"]["state"] == "INCONCLUSIVE" and "base" not in found["rates"][0] and "base" not in found["kept_by_label"][0]
    assert any("“kept, same kind” had nothing to measure" in line for line in found["skipped"])
    said = page.said()
    assert "before :" not in said and "after : neon, boat" in said and "object not read 2 of 8" in said and "not paired" not in said
    passed = write_report(out, recount(out, suite), [Gate(name="some", rate="UA", at_least=0.1)])
    assert json.loads((passed.parent / "report.json").read_text())["verdict"]["state"] == "PASS"


def test_the_command_counts_a_folder(drawn: Path, suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.yaml"
    record = yaml.safe_load((Path("prompts") / "pocket.yaml").read_text())
    record |= {"styles": {s: s for s in STYLES}, "objects": {o: f"a {o}" for o in OBJECTS}, "aliases": {}, "mutations": [], "gates": {}}
    path.write_text(yaml.safe_dump(record))
    argv = ["audit", "answers", str(drawn / "erased"), "--concept", "neon", "--out", str(tmp_path / "out"), "--suite", str(path), "--blur"]
    assert main(argv) == 4  # counted, but a suite without gates gives no verdict
    assert "UA 75.0 % (19.4 to 99.4; 3/4), IRA 100.0 % (39.7 to 100.0; 4/4), CRA 75.0 % (34.9 to 96.9; 6/8)" in capsys.readouterr().out
    page = Page((tmp_path / "out" / "report.html").read_text())
    veils = [attrs for attrs in page.all("label") if attrs.get("class") == "veil"]
    assert len(veils) == len(page.all("img")) > 0
    assert main(["audit", "report", str(tmp_path / "out"), "--suite", str(path)]) == 4
    assert not Page((tmp_path / "out" / "report.html").read_text()).all("label")
    assert main(["audit", "report", str(tmp_path / "out"), "--suite", str(path), "--blur"]) == 4
    assert len(Page((tmp_path / "out" / "report.html").read_text()).all("label")) == len(veils) + 1


def of_report(out: Path) -> dict[str, Any]:
    """report.json, which fits its schema."""
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    return found


def test_a_report_is_decided_by_the_gates_of_its_audit(
    drawn: Path, suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of a shipped suite under its name: neither the shipped gates nor judges with another margin come in."""
    path, out = tmp_path / "own.yaml", tmp_path / "out"
    record = yaml.safe_load((Path("prompts") / "pocket.yaml").read_text())
    record |= {"styles": {s: s for s in STYLES}, "objects": {o: f"a {o}" for o in OBJECTS}, "aliases": {}, "mutations": []}
    judge = {"judge": "zero_shot", "margin": 0.1}
    mine = {"judges": {"style": judge, "object": "pocket_object"}, "gates": {"mine": {"rate": "UA", "at_least": 1e-6}}}
    path.write_text(yaml.safe_dump({**record, **mine}))
    assert record["name"] == "pocket"
    assert main(["audit", "answers", str(drawn / "erased"), "--concept", "neon", "--out", str(out), "--suite", str(path)]) == 0
    before = (out / "result.json").read_bytes()
    assert main(["audit", "report", str(out)]) == 0
    assert [gate["name"] for gate in json.loads((out / "report.json").read_text())["gates"]] == ["mine"]
    path.write_text(yaml.safe_dump({**record, **mine, "gates": {"hard": {"rate": "UA", "at_least": 1.0}}}))
    assert main(["audit", "report", str(out), "--suite", str(path)]) == 4
    assert (out / "result.json").read_bytes() == before
    own, other = of_report(out), capsys.readouterr().out
    assert own["suite"]["file"] == "own.yaml" and own["thresholds"]["file"] == "own.yaml" and not own["thresholds"]["own"]
    assert f"decided by the thresholds of own.yaml (gates {own['thresholds']['digest']})" in other
    path.write_text(yaml.safe_dump({**record, **mine}))
    theirs = tmp_path / "theirs & co.yaml"
    easy = {"easy": {"rate": "UA", "at_least": 1e-9}}
    theirs.write_text(yaml.safe_dump({**record, **mine, "gates": easy}))
    assert main(["audit", "report", str(out), "--suite", str(theirs)]) == 0
    found, page = of_report(out), Page((out / "report.html").read_text())
    digest = found["thresholds"]["digest"]
    assert found["thresholds"] == {"digest": digest, "own": False, "file": "theirs & co.yaml"} and digest != own["thresholds"]["digest"]
    said = page.said().replace(" )", ")")
    assert (
        f"theirs & co.yaml (gates {digest}), not by those that this audit was made with" in said
        and "suite pocket (own.yaml)" in page.said()
    )
    assert "--suite own.yaml" in page.said() and f"erasure audit report {out} --suite '{theirs}'" in page.said()
    assert f"thresholds of theirs &amp; co.yaml ({digest})" in (out / "junit.xml").read_text()
    assert (out / "result.json").read_bytes() == before
    assert main(["audit", "report", str(out)]) == 0
    found, page = of_report(out), Page((out / "report.html").read_text())
    assert found["thresholds"]["own"] and found["thresholds"]["digest"] in page.said() and "not by those" not in page.said()
    assert "thresholds of" not in (out / "junit.xml").read_text() and "pocket (own.yaml)" in (out / "junit.xml").read_text()
    theirs.write_text(yaml.safe_dump({**record, **mine, "apart": []}))
    assert main(["audit", "report", str(out), "--suite", str(theirs)]) == 0  # the same gates on other rates
    apart = of_report(out)["thresholds"]
    assert not apart["own"] and apart["file"] == "theirs & co.yaml" and apart["digest"] != found["thresholds"]["digest"]
    capsys.readouterr()
    for judges, words in (({**judge, "margin": 0.2}, "its margin is 0.1, this one's is 0.2"), ("pocket_style", "another judge of style")):
        path.write_text(yaml.safe_dump({**record, **mine, "judges": {"style": judges, "object": "pocket_object"}}))
        assert main(["audit", "report", str(out), "--suite", str(path)]) == 1
        assert words in capsys.readouterr().err
    reseal(out, {key: value for key, value in json.loads(before).items() if key != "gates"})
    assert main(["audit", "report", str(out)]) == 1
    assert "does not hold its gates; name the suite with --suite" in capsys.readouterr().err


def test_the_longest_label_is_meant(tmp_path: Path) -> None:
    record = yaml.safe_load((Path("prompts") / "pocket.yaml").read_text())
    styles = {"warm": "warm", "warm_love": "warm love", "warm smear": "smear"}
    record |= {"styles": styles, "aliases": {}, "mutations": [], "apart": []}
    found = []
    for objects in ({"boat": "boat"}, {"boat": "boat", "love_boat": "love boat"}):
        (tmp_path / "s.yaml").write_text(yaml.safe_dump({**record, "objects": objects}))
        found.append(load_suite(str(tmp_path / "s.yaml")))
    for name in ("warm_boat", "warm_love_boat", "warm_smear_boat"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}_seed1.png")
    cells = {cell: path.name for (cell, _), path in read_external_images(tmp_path, found[0]).files.items()}
    assert cells[("warm_love", "boat")] == "warm_love_boat_seed1.png" and cells[("warm smear", "boat")] == "warm_smear_boat_seed1.png"
    with pytest.raises(UserError, match="no picture of 3 of 6 cells: warm_love_boat, warm_smear_love_boat, warm_love_love_boat"):
        read_external_images(tmp_path, found[1])


@pytest.mark.parametrize(
    ("spoil", "words"),
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
        (lambda f: [p.unlink() for p in f.glob("*_tree_*")], "no picture of 3 of 6 cells: neon_tree, plain_tree, sketch_tree"),
        (lambda f: [p.unlink() for p in f.glob("*")], r"no picture of 6 of 6 cells: .* and 1 more"),
        (lambda f: (f / "neon_boat_seed188.png").write_bytes(b"\x89PNG\r\n"), "neon_boat_seed188.png is no image that can be read"),
        (lambda f: Image.new("1", (20_000, 6_000)).save(f / "neon_boat_seed188.png"), "neon_boat_seed188.png has 20000 x 6000 pixels"),
    ],
)
def test_what_is_wrong_with_a_set_is_named_and_nothing_written(drawn: Path, suite: Suite, tmp_path: Path, spoil: Any, words: str) -> None:
    folder = changed(drawn, tmp_path)
    spoil(folder)
    with pytest.raises(UserError, match=words):
        audit_external_images(folder, suite, "neon", "style", tmp_path / "out")
    assert not (tmp_path / "out").exists() and photos.MAX_PIXELS < 20_000 * 6_000


def test_a_base_of_other_pictures_is_refused(drawn: Path, suite: Suite, tmp_path: Path) -> None:
    folder = changed(drawn, tmp_path)
    (folder / "neon_boat_seed188.png").unlink()
    with pytest.raises(UserError, match=r"set lacks 1 pictures that the other folder has: neon_boat_seed188"):
        audit_external_images(folder, suite, "neon", "style", tmp_path / "out", drawn / "base")
    with pytest.raises(UserError, match=r"set lacks 1 pictures that the other folder has: neon_boat_seed188"):
        audit_external_images(drawn / "erased", suite, "neon", "style", tmp_path / "out", folder)
    with pytest.raises(UserError, match="has no styles and objects"):
        audit_external_images(folder, load_suite("nudity"), "nudity", "nsfw", tmp_path / "out")
    with pytest.raises(UserError, match="Did you mean 'neon'"):
        audit_external_images(folder, suite, "neom", "style", tmp_path / "out")


def test_other_bytes_under_the_same_names_are_another_set(drawn: Path, suite: Suite, tmp_path: Path) -> None:
    folder = changed(drawn, tmp_path)
    same, path = read_external_images(folder, suite).digest, folder / "neon_boat_seed188.png"
    assert same == read_external_images(drawn / "erased", suite).digest
    Image.open(path).rotate(180).save(path)
    assert read_external_images(folder, suite).digest != same


def test_jpeg_sizes_and_uneven_cells_are_said(drawn: Path, suite: Suite, tmp_path: Path) -> None:
    folder = changed(drawn, tmp_path)
    for path in [*folder.glob("sketch_*")]:
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    (folder / "plain_boat_seed188.png").unlink()
    base = tmp_path / "base"
    shutil.copytree(drawn / "base", base)
    (base / "plain_boat_seed188.png").unlink()
    result = audit_external_images(folder, suite, "neon", "style", tmp_path / "out", base)
    assert result["images"] == {"jpeg": 4, "n": 22, "sizes": ["64 x 64"], "per_cell": [1, 2], "seeds": [188, 288]}
    write_report(tmp_path / "out", result, suite.gates)
    doubts = " ".join(json.loads((tmp_path / "out" / "report.json").read_text())["doubts"])
    assert "4 of 22 pictures are JPEG files" in doubts and "Cells have between 1 and 2 pictures" in doubts
    assert [
        a.index for a in external_samples(suite, read_external_images(folder, suite)) if (a.case.style, a.case.object) == ("plain", "boat")
    ] == [1]


def test_mixed_sizes_are_read_and_said(drawn: Path, suite: Suite, tmp_path: Path) -> None:
    from dataclasses import replace

    mixed = replace(
        suite, judges={axis: {**ZERO, "labels": {label: [label] for label in suite.phrases(axis)}} for axis in ("style", "object")}
    )
    base = tmp_path / "base"
    shutil.copytree(drawn / "base", base)  # one picture of the base alone, which no file of the erased model's tells
    Image.open(base / "plain_boat_seed188.png").resize((96, 64)).save(base / "plain_boat_seed188.png")
    result = audit_external_images(drawn / "erased", mixed, "neon", "style", tmp_path / "out", base)
    assert result["images"]["sizes"] == ["64 x 64", "96 x 64"] and result["distance"] is None and result["distances"] == {}
    assert rates_of(result)["UA"][1] == 4
    write_report(tmp_path / "out", result, suite.gates)
    assert "different sizes (64 x 64, 96 x 64)" in " ".join(json.loads((tmp_path / "out" / "report.json").read_text())["doubts"])


ZERO = {"judge": "zero_shot", "templates": ["{}"]}


def test_fresh_removes_an_answer_sets_own_files_alone(drawn: Path, suite: Suite, tmp_path: Path) -> None:
    out = tmp_path / "out"
    audit_external_images(drawn / "erased", suite, "neon", "style", out)
    foreign = [out / name for name in ("notes.txt", "images/mine.png", "images/erased/cat.png", "readings/mine.jsonl")]
    for path in foreign:
        path.write_text(path.name)
    picture = next((out / "images" / "erased").glob("neon-boat-*.png"))
    picture.write_bytes(b"stale")
    with pytest.raises(UserError, match=r"holds another job .*--fresh to start over"):
        audit_external_images(drawn / "base", suite, "neon", "style", out)
    result = audit_external_images(drawn / "base", suite, "neon", "style", out, fresh=True)
    assert result["models"]["erased"]["rates"]["UA"]["k"] == 0 and picture.read_bytes() != b"stale"
    assert [path.read_text() for path in foreign] == [path.name for path in foreign]
