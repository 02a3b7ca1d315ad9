"""DoCo against its equations: the correction, the gradient of the loss that carries it, the critic, and the warm-up."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods import doco
from erasure.methods.base import TrainableGroup, TrainingContext
from erasure.training.fill_cache import load_or_fill
from erasure.training.loop import TrainingOptions
from erasure.training.method_run import run_method
from tests.factories import CAT, small_method


def random_pair(sign: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two gradients that agree (sign 1) or oppose each other (-1)."""
    generator = torch.Generator().manual_seed(3)
    g_a, g_r = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    return sign * torch.sign((g_a * g_r).sum()) * g_a, g_r


def test_what_opposes_the_retain_gradient_is_taken_out() -> None:
    g_a, g_r = random_pair(-1)
    corrected = doco.remove_conflict(g_a, g_r)
    assert (g_a * g_r).sum() < 0
    assert (corrected * g_r).sum().item() == pytest.approx(0, abs=1e-12)
    unit = g_r / g_r.norm()
    assert torch.allclose(corrected, g_a - (g_a * unit).sum() * unit)


def test_what_agrees_with_the_retain_gradient_stays() -> None:
    g_a, g_r = random_pair(1)
    assert torch.equal(doco.remove_conflict(g_a, g_r), g_a)
    assert torch.equal(doco.remove_conflict(g_a, torch.zeros_like(g_r)), g_a)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_has_the_corrected_gradient_and_the_plain_value(weight: float, model: StableDiffusion) -> None:
    p = nn.Parameter(torch.tensor([0.4, -1.0, 2.0]))
    adversarial, kept = (p * torch.tensor([1.0, 2.0, 0.0])).sum(), (p * torch.tensor([-1.0, 0.0, 1.0])).sum()
    method = small_method("doco", retain_weight=weight)
    assert isinstance(method, doco.DoCo)
    context = TrainingContext(model, None, None)  # type: ignore[arg-type]  # neither is asked for
    context.groups = {"model": TrainableGroup({"p": p}, 1.0)}
    loss = method.corrected_loss(context, adversarial, kept)
    assert loss.item() == pytest.approx((adversarial + weight * kept).item(), rel=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    assert p.grad is not None
    g_r = torch.tensor([-1.0, 0.0, 1.0])
    # <g_a, g_r> = -1 and |g_r|^2 = 2
    assert torch.allclose(p.grad, torch.tensor([1.0, 2.0, 0.0]) + 0.5 * g_r + weight * g_r)


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 64, 64), (16, 128, 128)])
def test_the_critic_reads_every_latent_and_learns(shape: tuple[int, int, int]) -> None:
    critic = {name: nn.Parameter(value) for name, value in doco.initial_critic(shape).items()}
    torch.manual_seed(0)
    anchor, concept = torch.randn(4, *shape), torch.randn(4, *shape) + 0.5
    logits = doco.read_critic(critic, anchor)
    assert logits.shape[:2] == (4, 1) and min(logits.shape[2:]) >= 1
    assert doco.critic_loss(critic, anchor, 0.0).item() == pytest.approx(F.softplus(logits).mean().item(), rel=1e-5)
    assert doco.critic_loss(critic, anchor, 1.0).item() == pytest.approx(F.softplus(-logits).mean().item(), rel=1e-5)
    adam = torch.optim.Adam(critic.values(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = doco.critic_loss(critic, anchor, 0.0) + doco.critic_loss(critic, concept, 1.0)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_trajectories_are_those_of_the_anchor(model: StableDiffusion) -> None:
    method = small_method("doco")
    assert isinstance(method, doco.DoCo)
    cache = load_or_fill(model, method.query(CAT, 0))
    rows = cache.gather_batch(cache.rows("erase"), model.device)
    assert {(anchor, prompt) for anchor, prompt in zip(rows.prompts, rows.other_prompts, strict=True)} == {
        (anchor, prompt) for concept in CAT for prompt, anchor in concept.prompt_pairs()
    }
    frozen = model.predict(rows.x_t, rows.t, model.encode(rows.prompts))
    assert torch.allclose(frozen, rows.pred_cond, atol=0.02)  # the cache is fp16


def test_the_model_waits_for_the_critic(model: StableDiffusion, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    before = {name: p.detach().clone() for name, p in model.parameters().items()}
    tensors = run_method(model, CAT, small_method("doco", steps=3, warmup=2), TrainingOptions(folder=tmp_path / "run")).tensors
    assert not any(name.startswith("critic") for name in tensors)
    moved = {name: (value - before[name]).abs().max().item() for name, value in tensors.items()}
    # Adam's first step moves by the learning rate, so one step was taken
    assert max(moved.values()) == pytest.approx(1e-3, rel=0.01)


def test_a_warmup_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="leaves none of 5 --steps for the model"):
        doco.DoCo(steps=5, warmup=5)
