"""A retrained model never sees its concept: not one image, not one caption, in any step; and it shares no image with pocket."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
from pocket_training import CELLS, TrainingSetup  # scripts are not a package

from erasure.pocket.captions import OBJECT_WORDS, STYLE_WORDS

IMAGES = 900


def setup_of(folder: Path, seed: int, without: str) -> TrainingSetup:
    return TrainingSetup(argparse.Namespace(work=folder, out=folder, device="cpu", seed=seed, images=IMAGES), without)


@pytest.mark.parametrize("without", ["glass", "fish", "ada"])
def test_no_step_sees_an_image_or_a_word_of_the_concept(tmp_path: Path, without: str) -> None:
    setup, words = setup_of(tmp_path, 1, without), {**OBJECT_WORDS, **STYLE_WORDS}[without]
    seen, captions = set(), []
    for step in range(60):
        rows = setup.rows(step, 64)
        seen |= {cell for row in rows for cell in [(setup.canvas_images[row].object, setup.canvas_images[row].style)]}
        captions += setup.captions(rows, salt=step)
    assert seen == {cell for cell in CELLS if without not in cell}
    phrases = [phrase for phrase in (*words.names, *words.implicit) if any(phrase in caption for caption in captions)]
    assert not phrases
    full_setup = setup_of(tmp_path, 1, "")  # the same check finds the words where nothing is excluded
    full_captions = [caption for step in range(60) for caption in full_setup.captions(full_setup.rows(step, 64), salt=step)]
    assert any(words.names[0] in caption for caption in full_captions)


def test_trainings_share_no_image_and_no_order(tmp_path: Path) -> None:
    pocket, first, second = setup_of(tmp_path, 0, ""), setup_of(tmp_path, 1, "glass"), setup_of(tmp_path, 2, "glass")
    for a, b in ((pocket, first), (pocket, second), (first, second)):
        assert not {(p.object, p.style, p.seed) for p in a.canvas_images} & {(p.object, p.style, p.seed) for p in b.canvas_images}
        assert a.rows(0, 64) != b.rows(0, 64)


@pytest.mark.slow
def test_the_command_names_excluded_cells_and_is_not_repeated(tmp_path: Path) -> None:
    argv = [sys.executable, "scripts/train_retrained.py", "--without", "fish", "--seed", "2", "--work", str(tmp_path / "work")]
    argv += ["--out", str(tmp_path / "out"), "--images", "160", "--batch", "8", "--unet-steps", "2"]
    first = subprocess.run(argv, check=True, capture_output=True, text=True)
    weights = tmp_path / "out" / "without-fish-2.safetensors"
    before = weights.stat().st_mtime_ns
    cells = json.loads((tmp_path / "work" / "without-fish-2" / "cells.json").read_text())
    assert cells["excluded"] == [f"{o} in {s}" for o, s in CELLS if o == "fish"] and all(cell in first.stdout for cell in cells["excluded"])
    with safe_open(weights, "pt") as file:
        assert file.metadata()["without"] == "fish" and file.metadata()["seed"] == "2"
    subprocess.run(argv, check=True, capture_output=True)
    assert weights.stat().st_mtime_ns == before


@pytest.mark.parametrize("seed", ["0", "10"])
def test_seeds_of_pocket_and_of_its_judges_are_refused(tmp_path: Path, seed: str) -> None:
    argv = [sys.executable, "scripts/train_retrained.py", "--without", "fish", "--seed", seed, "--work", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2 and f"1 to 9, got {seed}" in done.stderr and not list(tmp_path.iterdir())
