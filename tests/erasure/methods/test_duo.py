"""DUO: pairs from equal noise, the frozen model's margins, and the preference loss."""

import math

import pytest
import torch

from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.base import TrainingContext
from erasure.methods.duo import DUO
from erasure.training import fill_cache
from tests.factories import CAT, small_method


def prepared(model: StableDiffusion) -> tuple[DUO, TrainingContext]:
    method = small_method("duo", beta=20.0)
    assert isinstance(method, DUO)
    context = TrainingContext(model, fill_cache.load_or_fill(model, method.query(CAT, seed=0)), model.encode)
    method.prepare(context, {})
    return method, context


def test_the_other_half_of_a_pair_comes_from_the_same_seed(model: StableDiffusion) -> None:
    method, context = prepared(model)
    starts = context.cache.query.trajectory_starts()
    prompts = [context.cache.query.prompt_pair(i)[1] for _, i in starts]
    alone = model.sample(prompts, [seed for seed, _ in starts], steps=method.trajectory_steps, guidance=method.trajectory_guidance)
    assert torch.allclose(context.state["without"], alone, atol=1e-5)
    assert len(context.state["margins"]) == 2 * len(starts)
    assert (context.state["times"] <= 0.75 * model.num_timesteps).all() and context.state["times"].std() > 0


def test_at_the_start_it_ascends_on_the_concept_and_descends_without_it(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the frozen model the loss is log 2 / beta, and its slope half that of l+ - l-."""
    method, context = prepared(model)
    rows = torch.arange(4)
    assert method.loss(context, rows).item() == pytest.approx(math.log(2) / 20, rel=1e-4)
    real, predictions = TrainingContext.predict, []

    def follow(self: TrainingContext, *args: object) -> torch.Tensor:
        predictions.append(real(self, *args).detach().requires_grad_())  # type: ignore[arg-type]
        return predictions[-1]

    monkeypatch.setattr(TrainingContext, "predict", follow)
    (slope,) = torch.autograd.grad(method.loss(context, rows), predictions[-1:])
    (margin_slope,) = torch.autograd.grad(method.error_margin(context, rows).mean(), predictions[-1:])
    assert torch.allclose(slope, margin_slope / 2, atol=1e-6)


def test_the_loss_is_the_papers(model: StableDiffusion) -> None:
    """-log sigma(-beta [(l+ - l*+) - (l- - l*-)]), with the errors written out."""
    method, context = prepared(model)
    with torch.no_grad():
        for p in model.denoiser.parameters():
            p.mul_(1.05)
    rows = torch.tensor([1, 6])
    expected = 0.0
    for margin, frozen in zip(method.error_margin(context, rows).tolist(), context.state["margins"][rows].tolist(), strict=True):
        expected += -math.log(1 / (1 + math.exp(20 * (margin - frozen)))) / 2
    assert method.loss(context, rows).item() == pytest.approx(expected / 20, rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [({"beta": 0.0}, "--beta"), ({"largest_time": 1.5}, "--largest-time"), ({"anchor_weight": -1.0}, "--anchor-weight")],
)
def test_wrong_fields_are_refused(fields: dict[str, float], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        DUO(**fields)  # type: ignore[arg-type]
