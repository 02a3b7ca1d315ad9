"""Denoiser divergence: how far two denoisers with one forward process are from each other (FADE-style, after arXiv:2510.12981).

Two reverse chains that start from one noise and take Gaussian steps of one variance sigma_t^2 differ by
KL(a || b) = sum_t E_{x_t ~ a} w_t |eps_a - eps_b|^2, w_t = beta_t^2 / (2 sigma_t^2 alpha_t (1 - abar_t)), which bounds KL(p_a(x_0 | c) ||
p_b(x_0 | c)) from above (data processing; the weight is that of DDPM, arXiv:2006.11239, equation 12). sigma_t^2 = beta_t here, the larger
of DDPM's two choices: with the smaller one w_t is infinite at the first step.

This is our own reading of FADE and not the authors' code: their weights and sample counts are not public, so its values compare with each
other alone. x_t is made by noising an x_0 of a again, which approximates the path that a itself takes. The bound is on the model without
guidance, so x_0 should be drawn at guidance 1, which is not how people draw. Against the base it measures how far a model drifted; only
against a model that never saw the concept does it measure how well it forgot.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from erasure.edits import Edit
from erasure.erasing import apply_edits
from erasure.errors import UserError
from erasure.families.base import DiffusionModel, sampling_of
from eval.stats.clusters import cluster_bootstrap
from eval.stats.intervals import Interval


class NoisedPoints(NamedTuple):
    """Where denoisers are compared; in memory, N latents in fp32 on the CPU."""

    x_t: Tensor  # (N, C, h, w)
    t: Tensor  # (N,)
    weights: Tensor  # (N,), T w_t: a mean over points stands for the sum over the T steps
    prompts: tuple[str, ...]  # N of them


class SquaredDifferences(NamedTuple):
    """Squared differences of two predictions at each point."""

    nats: Tensor  # (N,), T w_t |a - b|^2: nats per picture
    mean_squared_error: Tensor  # (N,), mean of (a - b)^2 over the elements of a latent
    prompts: tuple[str, ...]


class DirectedDivergence(NamedTuple):
    """One reading in both directions, each with its 95 % interval over prompts."""

    forward: Interval  # points from the first model
    backward: Interval  # points from the second
    mean: Interval


def sample_points(model: DiffusionModel, latents: Tensor, prompts: Sequence[str], *, timesteps: int = 20, seed: int = 0) -> NoisedPoints:
    """x_t at `times` timesteps of every latent, spread evenly over the schedule and drawn within each part of it.

    Args:
        latents: x_0 (M, C, h, w) that one of the two models drew under the prompts.
        seed: of timesteps and noise.

    Raises:
        UserError: not one prompt a latent, no timestep, or a schedule that ends without any signal.
    """
    if not len(latents) or len(latents) != len(prompts) or timesteps < 1:
        raise UserError(
            f"points need one prompt a latent and times >= 1, got {len(latents)} latents, {len(prompts)} prompts, {timesteps} times."
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
    """w_t for every timestep (T,), in float64.

    Raises:
        UserError: a schedule that ends without any signal, where the last weight is infinite.
    """
    num_timesteps = model.pipe.scheduler.config.num_train_timesteps
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
    """The model's predicted noise (N, C, h, w) at the points, without guidance, as the model is now: edits applied to it count.

    Raises:
        UserError: the model samples in another way than by its denoiser alone, so that its predictions do not say what it draws.
    """
    _require_denoiser(model)
    predictions_by_batch = []
    for i in range(0, len(points.x_t), batch):
        x_t, t = (values[i : i + batch].to(model.device) for values in (points.x_t, points.t))
        predictions_by_batch.append(model.predict(x_t, t, model.encode(points.prompts[i : i + batch])).cpu())
    return torch.cat(predictions_by_batch)


def _require_denoiser(model: DiffusionModel) -> None:
    sampling = sampling_of(model.pipe)
    if sampling.guidance_edits or sampling.one_step_timestep is not None:
        reason = "guidance edit, which changes no prediction," if sampling.guidance_edits else "one-step generator"
        raise UserError(f"denoiser divergence compares noise predictions, and a {reason} is applied; compare its pictures instead.")


def squared_differences(points: NoisedPoints, eps_a: Tensor, eps_b: Tensor) -> SquaredDifferences:
    """Both readings at every point; eps (N, C, h, w) of either model there."""
    difference = (eps_a.double() - eps_b.double()).flatten(1).square()
    return SquaredDifferences(points.weights * difference.sum(1), difference.mean(1), points.prompts)


def directed_divergences(
    forward: SquaredDifferences, backward: SquaredDifferences, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, DirectedDivergence]:
    """ "nats", the weighted sum over steps, and "plain", the unweighted mean; each with a cluster bootstrap over prompts.

    Args:
        forward, backward: at points from the first model and at points from the second, under the same prompts.

    Raises:
        UserError: other prompts, or fewer than two.
    """
    if sorted(forward.prompts) != sorted(backward.prompts):
        raise UserError("both directions need the same prompts, each with as many points; draw from both models under one list of prompts.")
    divergences = {}
    for name in ("nats", "plain"):
        directions = [_group_by_prompt(getattr(side, name), side.prompts) for side in (forward, backward)]
        summed = [from_first + from_second for from_first, from_second in zip(*directions, strict=True)]
        divergences[name] = DirectedDivergence(
            *(cluster_bootstrap(clusters, resamples=resamples, seed=seed) for clusters in (*directions, summed))
        )
    return divergences


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
) -> dict[str, DirectedDivergence]:
    """Divergence of one model under two lists of edits, either of which may be empty; the model is left as it was.

    Every list of edits goes in twice: to draw, and to predict at the points of both.

    Args:
        prompts, seeds: one latent each.
        steps, guidance: of the drawing; the bound holds for pictures drawn at guidance 1.
        seed: of timesteps and noise, the same for both, so that equal models meet at equal points and differ by exactly 0.

    Raises:
        UserError: see `points`, `predictions` and `divergence`.
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
