"""Inputs of every case: a tiny model, an edit of it, its audit and a LoRA, made once by the commands themselves."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from app.cli import main
from erasure.edits import Edit
from erasure.training import saliency
from eval.suites.suite import SUITES_FOLDER
from tests import tiny

SEED = 0


@dataclass(frozen=True)
class Fixtures:
    """Folders and files of valid runs. Cases copy them and never change them."""

    root: Path

    @property
    def model(self) -> Path:
        """A diffusers folder with images of 64 x 64 pixels, as pocket's judges need."""
        return self.root / "model"

    @property
    def edit(self) -> Path:
        return self.root / "edit"

    @property
    def audit(self) -> Path:
        return self.root / "audit"

    @property
    def job(self) -> Path:
        """The folder of a finished job."""
        return self.root / "job"

    @property
    def lora(self) -> Path:
        """A LoRA file of the edit."""
        return next(self.root.glob("lora/*.safetensors"))

    @property
    def mask(self) -> Path:
        return self.root / "mask.safetensors"

    @property
    def embedding(self) -> Path:
        """A learned embedding."""
        return self.root / "word.safetensors"

    def grid_suite(self) -> dict:
        """Return a suite of 3 x 2 cells in two steps."""
        suite = yaml.safe_load((SUITES_FOLDER / "pocket.yaml").read_text(encoding="utf-8"))
        suite |= {"steps": 2, "tiers": {tier: [1, 1] for tier in suite["tiers"]}, "perturbations": [], "attacks": None, "benign": None}
        suite["styles"] = {key: suite["styles"][key] for key in ("plain", "neon", "sketch")}
        suite["objects"] = {key: suite["objects"][key] for key in ("boat", "tree")}
        suite["aliases"] = {"neon": {"named": suite["aliases"]["neon"]["named"][:1]}}
        suite["neighbors"] = None
        return {key: value for key, value in suite.items() if value is not None}

    def prompt_list_suite(self) -> dict:
        """Return a suite without a grid, whose list is given with --prompt-list."""
        return {
            "name": "prompts",
            "version": 1,
            "format": "prompt_list",
            "concept": "neon",
            "kind": "style",
            "judge": "pocket_style",
            "steps": 2,
            "guidance": 3.0,
            "tiers": {tier: {"images": 1, "prompts": 2} for tier in ("smoke", "standard", "full")},
            "gates": {"erased": {"rate": "UA", "at_least": 0.5}},
        }


def make_fixtures(root: Path) -> Fixtures:
    """Make all fixtures below `root`. A failing command ends the script, because the cases would show nothing.

    Raises:
        SystemExit: A command failed.
    """
    fixtures = Fixtures(root)
    tiny.save_pipeline(fixtures.model, size=16, levels=3)
    (root / "grid.yaml").write_text(yaml.safe_dump(fixtures.grid_suite()))
    spec = {"concepts": [{"name": "neon", "kind": "style"}], "method": "uce", "model": str(fixtures.model)}
    fixtures.job.mkdir()
    (fixtures.job / "spec.json").write_text(json.dumps(spec))
    erase = ["erase", "--method", "uce", "--concept", "neon", "--model", str(fixtures.model)]
    for argv in (
        [*erase, "--out", str(fixtures.edit)],
        ["audit", str(fixtures.edit), "--suite", str(root / "grid.yaml"), "--tier", "smoke", "--out", str(fixtures.audit)],
        ["export", str(fixtures.edit), "--format", "lora", "--rank", "32", "--out", str(root / "lora")],
        ["jobs", "run-one", str(fixtures.job / "spec.json")],
    ):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as stderr:
            code = main(argv)
        if code not in (0, 3, 4):
            raise SystemExit(f"erasure {' '.join(argv)} ended with {code}: {stderr.getvalue()[-500:]}")
    generator = torch.Generator().manual_seed(SEED)
    tensors = Edit.load(fixtures.edit).tensors
    saliency.save_mask({name: torch.rand(value.shape, generator=generator) < 0.5 for name, value in tensors.items()}, fixtures.mask)
    save_file({"word": torch.randn(32, generator=generator)}, fixtures.embedding)
    return fixtures
