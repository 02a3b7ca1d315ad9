"""Gradients at other weights: uphill and after a relearning they equal those by hand; the weights come back; off changes nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families.cost import Cost
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.base import OptimizerStep
from erasure.training import lookahead
from erasure.training.loop import TrainingOptions
from erasure.training.method_run import run_method
from tests.factories import CAT, small_method

TARGET = torch.tensor([1.0, -2.0, 0.5])


class Quartic:
    """A method whose loss is sum (theta^4 / 4 - target theta), so that its gradient is theta^3 - target."""

    repeatable = True
    batch, resist_steps, resist_lr = 1, 2, 0.1

    def __init__(self, theta: nn.Parameter, sharp: float = 0.0, resist: float = 0.0) -> None:
        self.theta, self.sharp, self.resist = theta, sharp, resist

    def step(self, context: Any) -> Any:
        yield OptimizerStep("model", (self.theta**4 / 4 - TARGET * self.theta).sum())


def collect(method: Any) -> torch.Tensor:
    loss = next(iter(method.step(None))).loss
    context: Any = SimpleNamespace()
    lookahead.collect_gradients(method, context, {"a": method.theta}, 7, lambda loss: loss.backward(), loss)
    gradient: torch.Tensor = method.theta.grad.clone()
    return gradient


def start() -> nn.Parameter:
    return nn.Parameter(torch.tensor([0.3, 1.1, -0.7]))


def slope(theta: torch.Tensor) -> torch.Tensor:
    return theta**3 - TARGET


def test_without_a_look_the_gradient_is_that_of_the_loss() -> None:
    assert torch.allclose(collect(Quartic(start())), slope(start().detach()))


def test_sharp_takes_the_gradient_uphill() -> None:
    theta, before = start(), start().detach()
    uphill = 0.2 * slope(before) / slope(before).norm()
    assert torch.allclose(collect(Quartic(theta, sharp=0.2)), slope(before + uphill), atol=1e-6)
    assert torch.equal(theta.detach(), before), "the weights are back, bit for bit"


def test_resist_adds_the_gradient_after_a_relearning(monkeypatch: pytest.MonkeyPatch) -> None:
    theta, before = start(), start().detach()
    monkeypatch.setattr(lookahead, "relearning_loss", lambda context, count: (theta * torch.tensor([1.0, -3.0, 0.0])).sum())
    drawn = torch.rand((), generator=torch.Generator().manual_seed(lookahead.derive_seed(7, 1))).item()
    rate = 0.1 * lookahead.SMALLEST_RATE**drawn
    assert 0.01 <= rate <= 0.1
    relearned = before - 2 * rate * torch.tensor([1.0, -1.0, 0.0])
    assert torch.allclose(collect(Quartic(theta, resist=0.5)), slope(before) + 0.5 * slope(relearned), atol=1e-6)
    assert torch.equal(theta.detach(), before)


@pytest.mark.parametrize("name", ["esd", "npo", "salun"])
@pytest.mark.parametrize("fields", [{"sharp": 0.05}, {"resist": 1.0}, {"sharp": 0.05, "resist": 1.0}], ids=str)
def test_it_changes_the_edit_and_costs_what_it_forecasts(name: str, fields: dict[str, Any], model: StableDiffusion, tmp_path: Path) -> None:
    method, runs = small_method(name, **fields), [TrainingOptions(folder=tmp_path / name) for name in ("looked", "plain")]
    for run in runs:
        run.folder.mkdir()
    model.cost = Cost()
    looked = run_method(model, CAT, method, runs[0]).tensors
    forecast, counted = method.forecast_cost(model, CAT), model.cost
    for passes in ("unet_forwards", "unet_backwards", "sample_gradients"):
        assert getattr(forecast, passes) == getattr(counted, passes)
    plain = run_method(model, CAT, small_method(name), runs[1]).tensors
    assert any(not torch.equal(looked[key], value) for key, value in plain.items())


@pytest.mark.parametrize(
    ("name", "fields", "complaint"),
    [
        ("advunlearn", {"sharp": 0.1}, "--sharp computes a step's loss twice, and a step of AdvUnlearn cannot be repeated"),
        ("sfd", {"resist": 1.0}, "--resist computes a step's loss twice"),
        ("esd", {"sharp": -1.0}, "--sharp must not be negative"),
        ("esd", {"resist_lr": 0.0}, "--resist-lr must be positive"),
    ],
)
def test_what_cannot_be_repeated_is_refused(
    name: str, fields: dict[str, Any], complaint: str, model: StableDiffusion, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=complaint):
        erase(model, CAT, small_method(name, **fields), out=tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
