"""NPO: the equation against the paper's form, the noise of recorded rows, and which way the gradient points."""

import math

import pytest
import torch
from torch import Tensor

from erasure.concept import Concept
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.base import TrainingContext
from erasure.methods.npo import NPO
from erasure.training import fill_cache
from erasure.training.teacher_cache import TeacherBatch
from tests.factories import CAT, RETAIN_PROMPTS, small_method


def make_context(model: DiffusionModel, method: NPO) -> TrainingContext:
    return TrainingContext(model, fill_cache.load_or_fill(model, method.query(CAT, seed=0)), model.encode)


def small_npo(**fields: float) -> NPO:
    method = small_method("npo", **fields)
    assert isinstance(method, NPO)
    return method


def test_a_row_knows_the_end_of_its_own_trajectory(model: StableDiffusion) -> None:
    """Rows of several parts of unequal size; from each row the walk is gone on to its end."""
    query = small_npo().query(CAT, seed=3)
    cache = fill_cache.load_or_fill(model, query, chunk_size=3)
    (seeds, prompts) = zip(*query.trajectory_starts(), strict=True)
    noise = model.sample_noise(list(seeds))
    cond = model.encode([query.prompt_pair(i)[0] for i in prompts])
    walk = list(model.trajectory(noise, cond, model.encode_for_guidance([""]).expand(len(seeds)), query.steps, query.guidance))
    for row in range(len(cache)):
        distance = [(walk[step].x_t[i].cpu() - cache.x_t[row].float()).abs().max().item() for step in range(3) for i in range(len(seeds))]
        nearest = min(range(len(distance)), key=distance.__getitem__)
        assert distance[nearest] < 1e-2
        assert int(cache.latent_index[row]) == nearest % len(seeds)
    ends = cache.gather_batch(torch.arange(len(cache)), model.device).x_0
    assert torch.equal(ends, cache.x_0[cache.latent_index].to(model.device).float())


def test_the_noise_of_a_row_renoises_its_end(model: StableDiffusion) -> None:
    rows = make_context(model, small_npo()).sample_rows("erase", 6)
    noise = model.schedule.infer_noise(rows.x_0, rows.x_t, rows.t)
    assert torch.allclose(model.add_noise(rows.x_0, noise, rows.t), rows.x_t, atol=1e-4)


@pytest.mark.parametrize("beta", [0.5, 50.0])
def test_the_loss_is_the_papers_with_likelihoods_of_diffusion(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch, beta: float) -> None:
    """(2 / beta) E log(1 + (pi / pi_ref)^beta), with log pi = minus the noise error."""
    method = small_npo(beta=beta)
    context = make_context(model, method)
    rows = context.sample_rows("erase", 4)
    prediction = rows.pred_cond + 0.3 * torch.randn(rows.x_t.shape, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(TrainingContext, "predict", lambda *_: prediction)
    expected = 0.0
    for i in range(4):
        abar = float(model.schedule.alphas_cumprod[rows.t[i]])  # type: ignore[attr-defined]
        eps = (rows.x_t[i] - math.sqrt(abar) * rows.x_0[i]) / math.sqrt(1 - abar)
        log_ratio = float(((rows.pred_cond[i] - eps) ** 2).mean() - ((prediction[i] - eps) ** 2).mean())
        expected += 2 / beta * math.log1p(math.exp(beta * log_ratio)) / 4
    assert method.loss(context, rows).item() == pytest.approx(expected, rel=1e-4)


def slope_and_loss(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch, shift: float) -> tuple[Tensor, Tensor, float]:
    """The slope of the loss and that of the mean error at a prediction that is further from the noise by `shift`, and the loss."""
    method = small_npo(beta=20.0)
    context = make_context(model, method)
    rows: TeacherBatch = context.sample_rows("erase", 4)
    noise = model.schedule.infer_noise(rows.x_0, rows.x_t, rows.t)
    prediction = (rows.pred_cond + shift * (rows.pred_cond - noise).sign()).requires_grad_()
    monkeypatch.setattr(TrainingContext, "predict", lambda *_: prediction)
    loss = method.loss(context, rows)
    (slope,) = torch.autograd.grad(loss, prediction)
    (error_slope,) = torch.autograd.grad((prediction - noise).square().mean(), prediction)
    return slope, error_slope, loss.item()


def test_it_begins_as_gradient_ascent_and_stops_by_itself(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    slope, error_slope, loss = slope_and_loss(model, monkeypatch, shift=0.0)
    assert loss == pytest.approx(2 / 20 * math.log(2), rel=1e-5)
    assert torch.allclose(slope, -error_slope, atol=1e-7)
    late_slope, late_error_slope, late_loss = slope_and_loss(model, monkeypatch, shift=2.0)
    assert late_loss < 1e-6 and late_slope.norm() < 1e-6 * late_error_slope.norm()


def test_what_names_the_concept_is_not_retained() -> None:
    query = NPO(retain_prompts=RETAIN_PROMPTS).query([Concept(name="dog", kind="object")], seed=0)
    assert query.retain_prompts == ("a cat", "the sea")


@pytest.mark.parametrize(("fields", "complaint"), [({"beta": 0.0}, "--beta"), ({"retain_weight": -1.0}, "--retain-weight")])
def test_wrong_fields_are_refused(fields: dict[str, float], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        NPO(**fields)  # type: ignore[arg-type]
