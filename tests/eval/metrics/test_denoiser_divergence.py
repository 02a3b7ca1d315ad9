"""Denoiser divergence against closed forms of linear denoisers, its intervals, and what it refuses."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from erasure.edits import Edit
from erasure.edits.stacking import EditStack
from erasure.errors import UserError
from erasure.families.conditioning import Conditioning
from erasure.families.sampling import GuidanceEdit, SamplingOverrides
from erasure.families.stable_diffusion import StableDiffusion
from eval.metrics.denoiser_divergence import (
    NoisedPoints,
    directed_divergences,
    divergence_between,
    predict_at,
    sample_points,
    squared_differences,
    step_weights,
)
from eval.stats.intervals import Interval
from tests import tiny
from tests.synthetic_edits import random_edit

PROMPTS, SEEDS = ["a cat", "a dog", "a boat"], [1, 2, 3]


class Gaussian(StableDiffusion):
    """The ideal denoiser of data N(mean, variance) in every element: linear in x_t."""

    mean, variance = 0.0, 1.0

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        abar = self.schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        return (1 - abar).sqrt() * (x_t - abar.sqrt() * self.mean) / (abar * self.variance + 1 - abar)

    @contextmanager
    def with_data(self, mean: float, variance: float) -> Iterator[None]:
        """Be the ideal denoiser of other data within the block."""
        previous = self.mean, self.variance
        self.mean, self.variance = mean, variance
        yield
        self.mean, self.variance = previous


def chain_law(abar: Tensor, mean: float, variance: float) -> tuple[Tensor, Tensor]:
    """Law of the whole reverse chain (x_T, ..., x_0) of one element: mean (T + 1,) and lower triangular L with covariance L L^T.

    It runs the sampler x_{t-1} = (x_t - beta_t / sqrt(1 - abar_t) eps(x_t)) / sqrt(alpha_t) + sqrt(beta_t) z on the coefficients
    of the independent noises instead of on numbers, without any weight w_t.
    """
    steps = len(abar)
    alpha = abar / torch.cat((torch.ones(1), abar[:-1]))
    factor, mu = torch.zeros(steps + 1, steps + 1).double(), torch.zeros(steps + 1).double()
    factor[0, 0] = 1.0
    for row in range(1, steps + 1):
        t = steps - row
        slope = (1 - abar[t]).sqrt() / (abar[t] * variance + 1 - abar[t])
        shrink = (1 - alpha[t]) / (1 - abar[t]).sqrt()
        factor[row] = (factor[row - 1] - shrink * slope * factor[row - 1]) / alpha[t].sqrt()
        factor[row, row] = (1 - alpha[t]).sqrt()
        mu[row] = (mu[row - 1] - shrink * slope * (mu[row - 1] - abar[t].sqrt() * mean)) / alpha[t].sqrt()
    return mu, factor


def kl_divergence(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """KL of two Gaussians from their means and triangular factors, by the textbook formula with trace, distance and determinants."""
    (mu_a, l_a), (mu_b, l_b) = a, b
    trace = torch.linalg.solve_triangular(l_b, l_a, upper=False).square().sum()
    distance = torch.linalg.solve_triangular(l_b, (mu_b - mu_a)[:, None], upper=False).square().sum()
    return (0.5 * (trace + distance - len(mu_a)) + l_b.diagonal().log().sum() - l_a.diagonal().log().sum()).item()


def test_two_linear_gaussian_denoisers_match_the_kl_of_their_reverse_chains() -> None:
    """Both measures of the divergence are known in closed form for linear denoisers, in both directions.

    a is the ideal denoiser of N(0, 1), b that of N(0.2, 1.3). Every step of a reverse chain is linear in x_t plus noise of variance beta_t,
    so the 1001 states of a chain are jointly Gaussian and their KL follows from means and covariances alone (`chain_law`, `kl_divergence`).

    The estimator uses neither. It noises x_0 again instead of running the chain. For a that is exact: eps_a = sqrt(1 - abar) x gives steps
    x_{t-1} = sqrt(alpha_t) x_t + sqrt(beta_t) z, which keep N(0, 1) at every t, as noising N(0, 1) does. For b it is off by the error of a
    thousand steps (its chain ends in N(0.1988, 1.2996), not N(0.2, 1.3)), far below the sampling error here. KLs of elements add up.
    The sampled mean over t and x_t is within about 1%; the exact expectation over x_t in direction a, summed over t, within rounding.
    """
    model = Gaussian(tiny.pipeline(), "gaussian", "fp32")
    abar, elements, other = model.schedule.alphas_cumprod.double(), 4 * 8 * 8, (0.2, 1.3)
    laws = [chain_law(abar, 0.0, 1.0), chain_law(abar, *other)]
    there, back = elements * kl_divergence(laws[0], laws[1]), elements * kl_divergence(laws[1], laws[0])
    assert abs(there - back) > 0.2 * there  # the two directions differ clearly

    # eps_a - eps_b = slope x + shift, x ~ N(0, 1)
    ideal_b = (1 - abar).sqrt() / (abar * other[1] + 1 - abar)
    slope, shift = (1 - abar).sqrt() - ideal_b, ideal_b * abar.sqrt() * other[0]
    assert elements * (step_weights(model) * (slope.square() + shift.square())).sum().item() == pytest.approx(there, rel=1e-3)

    prompts, generator = [f"prompt {i}" for i in range(120)], torch.Generator().manual_seed(0)
    points, predictions = [], []
    for mu, factor in laws:
        x_0 = mu[-1] + factor[-1].norm() * torch.randn(len(prompts), *model.latent_shape, generator=generator)
        points.append(sample_points(model, x_0.float(), prompts, seed=1))
    for law in ((0.0, 1.0), other):
        with model.with_data(*law):
            predictions.append([predict_at(model, noised, batch=600) for noised in points])
    differences = [squared_differences(points[i], predictions[0][i], predictions[1][i]) for i in (0, 1)]
    divergences = directed_divergences(*differences, resamples=2000)
    nats, squared = divergences.nats, divergences.mean_squared_error
    assert nats.forward.estimate == pytest.approx(there, rel=0.025)
    assert nats.backward.estimate == pytest.approx(back, rel=0.025)
    assert nats.mean.estimate == pytest.approx((there + back) / 2, rel=0.025)
    assert nats.forward.low < nats.forward.estimate < nats.forward.high < nats.backward.low
    assert squared.forward.estimate == pytest.approx((slope.square() + shift.square()).mean().item(), rel=0.025)
    # the purpose of the bound: the chains' images, N(mean, variance) again, are no further from each other than the chains
    ends = [(mu[-1:], factor[-1:].norm()[None, None]) for mu, factor in laws]
    assert elements * kl_divergence(ends[0], ends[1]) < there
    assert elements * kl_divergence(ends[1], ends[0]) < back


def test_identical_models_have_divergence_0(model: StableDiffusion) -> None:
    for divergence in divergence_between(model, [], [], PROMPTS, SEEDS, steps=2, timesteps=4):
        assert divergence == (Interval(0.0, 0.0, 0.0),) * 3


def test_an_edit_changes_the_predictions_and_is_reverted(model: StableDiffusion) -> None:
    before, edit = model.fingerprint(), weak_edit(model)
    divergences = divergence_between(model, [], [edit], PROMPTS, SEEDS, steps=2, timesteps=4, batch=2)
    assert model.fingerprint() == before
    for divergence in divergences:
        assert divergence.forward.low > 0
        assert divergence.backward.low > 0
        assert divergence.forward != divergence.backward
        assert divergence.mean.estimate == pytest.approx((divergence.forward.estimate + divergence.backward.estimate) / 2)
    repeated = divergence_between(model, [], [edit], PROMPTS, SEEDS, steps=2, timesteps=4, batch=2)
    assert repeated == divergences
    reversed_ = divergence_between(model, [edit], [], PROMPTS, SEEDS, steps=2, timesteps=4, batch=2)
    assert reversed_.nats.forward.estimate == pytest.approx(divergences.nats.backward.estimate, rel=1e-4)


def weak_edit(model: StableDiffusion) -> Edit:
    """An edit that moves weights a little, also those of the text encoder, whose output must be computed under the edit."""
    edit, parameters = random_edit(model, "full"), model.parameters()
    return Edit({n: (parameters[n] + 0.02 * v.float()).half() for n, v in edit.tensors.items()}, edit.info)


def test_points_lie_on_the_forward_process_in_every_part_of_the_schedule(model: StableDiffusion) -> None:
    latents = torch.full((3, *model.latent_shape), 2.0)
    points = sample_points(model, latents, PROMPTS, timesteps=50, seed=4)
    assert torch.equal(points.t.reshape(3, 50) // 20, torch.arange(50).expand(3, 50))
    assert points.prompts == tuple(p for p in PROMPTS for _ in range(50))
    abar = model.schedule.alphas_cumprod[points.t].reshape(-1, 1, 1, 1)
    noise = (points.x_t - abar.sqrt() * 2.0) / (1 - abar).sqrt()
    assert abs(noise.mean().item()) < 0.02
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(points.x_t, sample_points(model, latents, PROMPTS, timesteps=50, seed=4).x_t)
    assert not torch.equal(points.x_t, sample_points(model, latents, PROMPTS, timesteps=50, seed=5).x_t)


def test_noise_and_velocity_models_share_the_weights(model: StableDiffusion, velocity_model: StableDiffusion) -> None:
    weights, abar = step_weights(model), model.schedule.alphas_cumprod.double()
    alpha = abar[1:] / abar[:-1]
    assert torch.allclose(weights[1:], (1 - alpha) / (2 * alpha * (1 - abar[1:])), rtol=1e-3)
    assert torch.equal(weights, step_weights(velocity_model))


def test_the_interval_is_over_prompts_and_not_over_points() -> None:
    generator = torch.Generator().manual_seed(0)
    prompts, eps = tuple(PROMPTS), torch.randn(3, 4, 2, 2, generator=generator)
    once = NoisedPoints(eps, torch.zeros(3).long(), torch.rand(3, generator=generator), prompts)
    often = NoisedPoints(*(part.repeat_interleave(9, 0) for part in once[:3]), tuple(p for p in prompts for _ in range(9)))
    first = squared_differences(once, eps, torch.zeros_like(eps))
    second = squared_differences(often, eps.repeat_interleave(9, 0), torch.zeros_like(eps).repeat_interleave(9, 0))
    for divergence, repeated in zip(directed_divergences(first, first), directed_divergences(second, second), strict=True):
        assert repeated.forward == pytest.approx(divergence.forward)
        assert divergence.forward.low < divergence.forward.high


def test_what_cannot_be_compared_is_refused(model: StableDiffusion) -> None:
    latents = torch.zeros(3, *model.latent_shape)
    with pytest.raises(UserError, match="2 prompts"):
        sample_points(model, latents, PROMPTS[:2])
    points = sample_points(model, latents, PROMPTS, timesteps=2)
    differences = squared_differences(points, points.x_t, points.x_t)
    with pytest.raises(UserError, match="same prompts"):
        directed_divergences(differences, differences._replace(prompts=("a cow",) * 6))
    with pytest.raises(UserError, match="two clusters"):
        directed_divergences(*[differences._replace(prompts=("a cow",) * 6)] * 2)
    for sampling in (SamplingOverrides(guidance_edits=(GuidanceEdit("a cat", print),)), SamplingOverrides(one_step_timestep=500)):
        model.pipe.erasure_edits = EditStack(sampling=sampling)
        with pytest.raises(UserError, match="compare its images"):
            predict_at(model, points)


def test_a_schedule_without_signal_at_its_end_is_refused() -> None:
    pipe = tiny.pipeline(prediction="v_prediction")
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, rescale_betas_zero_snr=True)
    with pytest.raises(UserError, match="without signal"):
        step_weights(StableDiffusion(pipe, "tiny", "fp32"))
