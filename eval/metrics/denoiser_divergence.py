"""Denoiser divergence: how far apart two denoisers of the same forward process are (FADE-style, after arXiv:2510.12981).

Two reverse chains that start from the same noise and take Gaussian steps of the same variance sigma_t^2 differ by
KL(a || b) = sum_t E_{x_t ~ a} w_t |eps_a - eps_b|^2, w_t = beta_t^2 / (2 sigma_t^2 alpha_t (1 - abar_t)), which bounds KL(p_a(x_0 | c) ||
p_b(x_0 | c)) from above (data processing; the weight is that of DDPM, arXiv:2006.11239, equation 12). sigma_t^2 = beta_t here, the larger
of DDPM's two choices: with the smaller one w_t is infinite at the first step.

This is our own interpretation of FADE, not the authors' code: their weights and sample counts are not public, so these values compare only
with each other. x_t comes from noising an x_0 of a again, which approximates the trajectory of a itself. The bound is on the model without
guidance, so x_0 should be sampled at guidance 1, which is not how people generate images. Against the base it measures how far a model
drifted; only against a model retrained without the concept does it measure how well the model forgot.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from erasure.edits import Edit, apply_edits
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.sampling import sampling_of
from eval.stats.bootstrap import cluster_bootstrap
from eval.stats.intervals import Interval


class NoisedPoints(NamedTuple):
    """Points at which denoisers are compared: N latents, fp32, on the CPU."""

    x_t: Tensor  # [N, C, h, w]
    t: Tensor  # (N,)
    weights: Tensor  # (N,), T w_t: a mean over points estimates the sum over the T steps
    prompts: tuple[str, ...]  # N of them


class SquaredDifferences(NamedTuple):
    """Squared differences of two predictions at each point."""

    nats: Tensor  # (N,), T w_t |a - b|^2: nats per image
    mean_squared_error: Tensor  # (N,), mean of (a - b)^2 over the elements of a latent
    prompts: tuple[str, ...]


class DirectedDivergence(NamedTuple):
    """One measure in both directions, each with its 95% interval over prompts."""

    forward: Interval  # points from the first model
    backward: Interval  # points from the second
    mean: Interval


def sample_points(model: DiffusionModel, latents: Tensor, prompts: Sequence[str], *, timesteps: int = 20, seed: int = 0) -> NoisedPoints:
    """Noise every latent to `timesteps` timesteps, one sampled in each of as many equal parts of the schedule.

    Args:
        latents: x_0 [M, C, h, w] that one of the two models generated for the prompts.
        seed: of timesteps and noise.

    Raises:
        UserError: the numbers of prompts and latents differ, there is no timestep, or the schedule ends without signal.
    """
    if not len(latents) or len(latents) != len(prompts) or timesteps < 1:
        raise UserError(
            f"points need one prompt per latent and timesteps >= 1, got {len(latents)} latents, {len(prompts)} prompts and {timesteps=}."
        )
    weights, generator = step_weights(model), torch.Generator().manual_seed(seed)
    num_timesteps, timestep_batches, x_t_batches = len(weights), [], []
    for x_0 in latents.cpu():
        t = (
            ((torch.arange(timesteps) + torch.rand(timesteps, generator=generator)) / timesteps * num_timesteps)
            .long()
            .clamp(max=num_timesteps - 1)
        )
        noise = torch.randn(timesteps, *x_0.shape, generator=generator)
        x_t_batches.append(model.add_noise(*(part.to(model.device) for part in (x_0.expand_as(noise), noise, t))).cpu())
        timestep_batches.append(t)
    t = torch.cat(timestep_batches)
    return NoisedPoints(torch.cat(x_t_batches), t, num_timesteps * weights[t], tuple(p for p in prompts for _ in range(timesteps)))


def step_weights(model: DiffusionModel) -> Tensor:
    """Return w_t for every timestep (T,), float64.

    Raises:
        UserError: a flow, or a schedule that ends without signal, where the last weight is infinite.
    """
    if model.schedule.predicts != "noise":
        raise UserError(f"denoiser divergence is defined for noise predictions; {model.source} predicts the velocity of a flow.")
    num_timesteps = model.num_timesteps
    ones, t = torch.ones(num_timesteps, 1, 1, 1, device=model.device), torch.arange(num_timesteps, device=model.device)
    abar = model.add_noise(ones, torch.zeros_like(ones), t).reshape(-1).cpu().double().square()
    alpha = abar / torch.cat((torch.ones(1), abar[:-1]))
    beta = 1 - alpha
    sigma_squared = beta
    weights = beta.square() / (2 * sigma_squared * alpha * (1 - abar))
    if not weights.isfinite().all():
        raise UserError(
            f"{model.source} has a schedule that ends without signal; the divergence is infinite there. Use another base model."
        )
    return weights


@torch.no_grad()
def predict_at(model: DiffusionModel, points: NoisedPoints, batch: int = 32) -> Tensor:
    """Return the predicted noise [N, C, h, w] at the points, without guidance, of the model as it is now, with the edits applied to it.

    Raises:
        UserError: the model does not sample by its denoiser alone, so its predictions do not say what it generates.
    """
    _require_denoiser(model)
    predictions_by_batch = []
    for i in range(0, len(points.x_t), batch):
        x_t, t = (values[i : i + batch].to(model.device) for values in (points.x_t, points.t))
        predictions_by_batch.append(model.predict(x_t, t, model.encode(points.prompts[i : i + batch])).cpu())
    return torch.cat(predictions_by_batch)


def _require_denoiser(model: DiffusionModel) -> None:
    """Check that the model samples by its denoiser alone.

    Raises:
        UserError: a guidance edit or a one-step generator is applied.
    """
    sampling = sampling_of(model.pipe)
    if sampling.guidance_edits or sampling.one_step_timestep is not None:
        reason = "guidance edit, which changes no prediction," if sampling.guidance_edits else "one-step generator"
        raise UserError(f"denoiser divergence compares noise predictions, and a {reason} is applied; compare its images instead.")


def squared_differences(points: NoisedPoints, eps_a: Tensor, eps_b: Tensor) -> SquaredDifferences:
    """Return both measures at every point; eps [N, C, h, w] of either model there."""
    difference = (eps_a.double() - eps_b.double()).flatten(1).square()
    return SquaredDifferences(points.weights * difference.sum(1), difference.mean(1), points.prompts)


class Divergences(NamedTuple):
    """Both measures of the divergence of two models."""

    nats: DirectedDivergence  # weighted sum over steps
    mean_squared_error: DirectedDivergence  # unweighted


def directed_divergences(
    forward: SquaredDifferences, backward: SquaredDifferences, *, resamples: int = 10_000, seed: int = 0
) -> Divergences:
    """Return both measures, each with a cluster bootstrap over prompts.

    Args:
        forward, backward: at points from the first model and at points from the second, for the same prompts.

    Raises:
        UserError: the prompts differ, or there are fewer than two.
    """
    if sorted(forward.prompts) != sorted(backward.prompts):
        raise UserError("both directions need the same prompts, each with as many points; sample both models with the same prompts.")

    def measure(values_of: Callable[[SquaredDifferences], Tensor]) -> DirectedDivergence:
        directions = [_group_by_prompt(values_of(side), side.prompts) for side in (forward, backward)]
        summed = [from_first + from_second for from_first, from_second in zip(*directions, strict=True)]
        intervals = (cluster_bootstrap(clusters, resamples=resamples, seed=seed) for clusters in (*directions, summed))
        return DirectedDivergence(*intervals)

    return Divergences(nats=measure(lambda side: side.nats), mean_squared_error=measure(lambda side: side.mean_squared_error))


def _group_by_prompt(values: Tensor, prompts: Sequence[str]) -> list[list[float]]:
    groups: dict[str, list[float]] = {prompt: [] for prompt in sorted(prompts)}
    for prompt, value in zip(prompts, values.tolist(), strict=True):
        groups[prompt].append(value)
    return list(groups.values())


def divergence_between(
    model: DiffusionModel,
    first: Sequence[Edit],
    second: Sequence[Edit],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 25,
    guidance: float = 1.0,
    timesteps: int = 20,
    seed: int = 0,
    batch: int = 32,
) -> Divergences:
    """Measure the divergence of one model with two lists of edits, either of which may be empty; the model is restored.

    Each list of edits is applied twice: to sample, and to predict at the points of both.

    Args:
        prompts, seeds: one latent each.
        steps, guidance: of sampling; the bound holds for images sampled at guidance 1.
        timesteps: points per latent.
        seed: of timesteps and noise, the same for both, so that equal models get equal points and differ by exactly 0.

    Raises:
        UserError: see `sample_points`, `predict_at` and `directed_divergences`.
    """
    point_sets: list[NoisedPoints] = []
    for edits in (first, second):
        with apply_edits(model, edits):
            _require_denoiser(model)
            groups = [(prompts[i : i + batch], seeds[i : i + batch]) for i in range(0, len(prompts), batch)]
            latents = torch.cat([model.sample(*group, steps, guidance).cpu() for group in groups])
        point_sets.append(sample_points(model, latents, prompts, timesteps=timesteps, seed=seed))
    predictions_by_model: list[list[Tensor]] = []
    for edits in (first, second):
        with apply_edits(model, edits):
            predictions_by_model.append([predict_at(model, point_set, batch) for point_set in point_sets])
    forward, backward = (
        squared_differences(point_set, *pair) for point_set, pair in zip(point_sets, zip(*predictions_by_model, strict=True), strict=True)
    )
    return directed_divergences(forward, backward, seed=seed)
