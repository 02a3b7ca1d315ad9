"""Adam with moments in 8 bits."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from erasure.concept import Concept
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.base import TrainableGroup, Trained, TrainingContext
from erasure.methods.esd import ESD
from erasure.training.loop import TrainingOptions
from erasure.training.optimizers import make_optimizer
from tests import tiny

CAT = Concept(name="cat", kind="object", prompts=("a {} | a",))
FIELDS = {"steps": 8, "batch": 1, "trajectories": 1, "trajectory_steps": 2, "lr": 1e-3}


def steps_of(name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Minimize a quadratic form, and return the solution so far and the optimizer's state."""
    p = torch.nn.Parameter(torch.linspace(-1, 1, 64 * 128).reshape(64, 128))
    optimizer = make_optimizer(name, TrainableGroup({"p": p}, lr=1e-2))  # type: ignore[arg-type]
    for _ in range(20):
        optimizer.zero_grad()
        p.square().sum().backward()
        optimizer.step()
    return p.detach(), optimizer.state[p]


def test_its_steps_are_nearly_adams_and_its_moments_bytes() -> None:
    (exact, _), (approximate, state) = steps_of("adam"), steps_of("adam8bit")
    start = torch.linspace(-1, 1, 64 * 128).reshape(64, 128)
    assert 0 < (exact - approximate).norm() < 0.1 * (exact - start).norm()
    assert sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor)) < 2 * 4 * exact.numel() / 3


def test_an_interrupted_training_continues_bit_for_bit(tmp_path: Path) -> None:
    model = StableDiffusion(tiny.pipeline(), "tiny", "fp32")
    method = ESD(**FIELDS, optimizer="adam8bit")
    erase(model, CAT, method, out=tmp_path / "whole")

    def stop(_: Trained, context: TrainingContext) -> None:
        if (tmp_path / "parts" / "checkpoint.pt").exists():
            raise KeyboardInterrupt

    from erasure import erasing

    def often(**options: object) -> TrainingOptions:
        return TrainingOptions(**{**options, "checkpoint_every": 3, "on_step": stop})  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(erasing, "TrainingOptions", often)
        erase(model, CAT, method, out=tmp_path / "parts")
    erase(model, CAT, method, out=tmp_path / "parts")
    whole, parts = (load_file(tmp_path / name / "edit.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)


def test_it_is_refused_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    model = StableDiffusion(tiny.pipeline(), "tiny", "fp32")
    with pytest.raises(UserError, match=r"adam8bit needs bitsandbytes, which is not installed: pip install 'erasure-studio\[8bit\]'"):
        erase(model, CAT, ESD(**FIELDS, optimizer="adam8bit"), out=tmp_path)
