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
from erasure.erasing import applied
from erasure.errors import UserError
from erasure.families.base import DiffusionModel, sampling_of
from eval.stats.clusters import cluster_bootstrap
from eval.stats.intervals import Interval


class Points(NamedTuple):
    """Where denoisers are compared; in memory, N latents in fp32 on the CPU."""

    x_t: Tensor  # (N, C, h, w)
    t: Tensor  # (N,)
    weights: Tensor  # (N,), T w_t: a mean over points stands for the sum over the T steps
    prompts: tuple[str, ...]  # N of them


class Squares(NamedTuple):
    """Squared differences of two predictions at each point."""

    nats: Tensor  # (N,), T w_t |a - b|^2: nats per picture
    plain: Tensor  # (N,), mean of (a - b)^2 over the elements of a latent
    prompts: tuple[str, ...]


class Divergence(NamedTuple):
    """One reading in both directions, each with its 95 % interval over prompts."""

    forward: Interval  # points from the first model
    backward: Interval  # points from the second
    mean: Interval


def points(model: DiffusionModel, latents: Tensor, prompts: Sequence[str], *, times: int = 20, seed: int = 0) -> Points:
    """x_t at `times` timesteps of every latent, spread evenly over the schedule and drawn within each part of it.

    Args:
        latents: x_0 (M, C, h, w) that one of the two models drew under the prompts.
        seed: of timesteps and noise.

    Raises:
        UserError: not one prompt a latent, no timestep, or a schedule that ends without any signal.
    """
    if not len(latents) or len(latents) != len(prompts) or times < 1:
        raise UserError(
            f"points need one prompt a latent and times >= 1, got {len(latents)} latents, {len(prompts)} prompts, {times} times."
        )
    weights, generator = step_weights(model), torch.Generator().manual_seed(seed)
    steps, found_t, found_x = len(weights), [], []
    for x_0 in latents.cpu():
        t = ((torch.arange(times) + torch.rand(times, generator=generator)) / times * steps).long().clamp(max=steps - 1)
        noise = torch.randn(times, *x_0.shape, generator=generator)
        found_x.append(model.noised(*(part.to(model.device) for part in (x_0.expand_as(noise), noise, t))).cpu())
        found_t.append(t)
    t = torch.cat(found_t)
    return Points(torch.cat(found_x), t, steps * weights[t], tuple(p for p in prompts for _ in range(times)))


def step_weights(model: DiffusionModel) -> Tensor:
    """w_t for every timestep (T,), in float64.

    Raises:
        UserError: a schedule that ends without any signal, where the last weight is infinite.
    """
    steps = model.pipe.scheduler.config.num_train_timesteps
    one, t = torch.ones(steps, 1, 1, 1, device=model.device), torch.arange(steps, device=model.device)
    abar = model.noised(one, torch.zeros_like(one), t).reshape(-1).cpu().double().square()
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
def predictions(model: DiffusionModel, at: Points, batch: int = 32) -> Tensor:
    """The model's predicted noise (N, C, h, w) at the points, without guidance, as the model is now: edits applied to it count.

    Raises:
        UserError: the model samples in another way than by its denoiser alone, so that its predictions do not say what it draws.
    """
    _denoises(model)
    found = []
    for i in range(0, len(at.x_t), batch):
        x_t, t = (part[i : i + batch].to(model.device) for part in (at.x_t, at.t))
        found.append(model.predict(x_t, t, model.encode(at.prompts[i : i + batch])).cpu())
    return torch.cat(found)


def _denoises(model: DiffusionModel) -> None:
    sampling = sampling_of(model.pipe)
    if sampling.guidance or sampling.one_step is not None:
        kind = "guidance edit, which changes no prediction," if sampling.guidance else "one-step generator"
        raise UserError(f"denoiser divergence compares noise predictions, and a {kind} is applied; compare its pictures instead.")


def squares(at: Points, eps_a: Tensor, eps_b: Tensor) -> Squares:
    """Both readings at every point; eps (N, C, h, w) of either model there."""
    difference = (eps_a.double() - eps_b.double()).flatten(1).square()
    return Squares(at.weights * difference.sum(1), difference.mean(1), at.prompts)


def divergence(forward: Squares, backward: Squares, *, resamples: int = 10_000, seed: int = 0) -> dict[str, Divergence]:
    """ "nats", the weighted sum over steps, and "plain", the unweighted mean; each with a cluster bootstrap over prompts.

    Args:
        forward, backward: at points from the first model and at points from the second, under the same prompts.

    Raises:
        UserError: other prompts, or fewer than two.
    """
    if sorted(forward.prompts) != sorted(backward.prompts):
        raise UserError("both directions need the same prompts, each with as many points; draw from both models under one list of prompts.")
    found = {}
    for name in ("nats", "plain"):
        ways = [_by_prompt(getattr(side, name), side.prompts) for side in (forward, backward)]
        both = [there + back for there, back in zip(*ways, strict=True)]
        found[name] = Divergence(*(cluster_bootstrap(clusters, resamples=resamples, seed=seed) for clusters in (*ways, both)))
    return found


def _by_prompt(values: Tensor, prompts: Sequence[str]) -> list[list[float]]:
    groups: dict[str, list[float]] = {prompt: [] for prompt in sorted(prompts)}
    for prompt, value in zip(prompts, values.tolist(), strict=True):
        groups[prompt].append(value)
    return list(groups.values())


def between(
    model: DiffusionModel,
    first: Sequence[Edit],
    second: Sequence[Edit],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 25,
    guidance: float = 1.0,
    times: int = 20,
    seed: int = 0,
    batch: int = 32,
) -> dict[str, Divergence]:
    """Divergence of one model under two lists of edits, either of which may be empty; the model is left as it was.

    Every list of edits goes in twice: to draw, and to predict at the points of both.

    Args:
        prompts, seeds: one latent each.
        steps, guidance: of the drawing; the bound holds for pictures drawn at guidance 1.
        seed: of timesteps and noise, the same for both, so that equal models meet at equal points and differ by exactly 0.

    Raises:
        UserError: see `points`, `predictions` and `divergence`.
    """
    where: list[Points] = []
    for edits in (first, second):
        with applied(model, edits):
            _denoises(model)
            groups = [(prompts[i : i + batch], seeds[i : i + batch]) for i in range(0, len(prompts), batch)]
            latents = torch.cat([model.sample(*group, steps, guidance).cpu() for group in groups])
        where.append(points(model, latents, prompts, times=times, seed=seed))
    said: list[list[Tensor]] = []
    for edits in (first, second):
        with applied(model, edits):
            said.append([predictions(model, at, batch) for at in where])
    forward, backward = (squares(at, *answers) for at, answers in zip(where, zip(*said, strict=True), strict=True))
    return divergence(forward, backward, seed=seed)
