"""The training command itself, a few steps of every stage, twice: the second time there is nothing left to do."""

import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

STEPS = {"vae-steps": 3, "text-steps": 3, "unet-steps": 3, "judge-steps": 2, "clip-steps": 2, "broken": 30, "images": 180}


@pytest.mark.slow
def test_every_stage_runs_and_is_not_repeated(tmp_path: Path) -> None:
    argv = [sys.executable, "scripts/train_pocket.py", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    argv += [word for name, value in STEPS.items() for word in (f"--{name}", str(value))]
    subprocess.run(argv, check=True, capture_output=True)
    made = {p.relative_to(tmp_path): p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    names = {str(p) for p in made}
    assert {"out/judges/style.safetensors", "out/judges/object.safetensors", "out/open_clip/open_clip_model.safetensors"} <= names
    StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None)
    subprocess.run(argv, check=True, capture_output=True)
    assert made == {p.relative_to(tmp_path): p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
