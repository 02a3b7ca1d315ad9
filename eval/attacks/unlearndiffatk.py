"""UnlearnDiffAtk: tokens before each prompt that make the erased model denoise the image the base generated for it (white box)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from erasure.config.choices import Timestep
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.sampling import sampling_of
from erasure.training.divergence import explain_divergence
from eval.attacks._token_search import query_from_ids, searchable_token_ids
from eval.attacks.base import AttackContext, AttackQuery, NotApplicable, Prepared, PromptAttack


@dataclass(frozen=True, kw_only=True)
class UnlearnDiffAtk(PromptAttack):
    """Projected Adam over distributions of tokens, one row for every token of the prefix (Zhang et al., arXiv:2310.11868).

    The paper spends 40 steps at each of 50 timesteps and generates an image after each timestep: 2,000 steps, 50 rounds. Fewer steps are
    spread evenly over the same timesteps. The gradient does not see an edit that acts only during sampling.
    """

    paper: ClassVar[str] = "arXiv:2310.11868"
    threat: ClassVar[str] = "has the erased model's weights; puts words before a prompt"

    tokens: int = 3  # tokens before every prompt; the paper uses 3 for styles and objects, 5 for nudity
    steps: int = 2000  # gradient steps for every prompt
    lr: float = 0.01  # Adam's step size, in units of probability
    weight_decay: float = 0.1  # Adam's; it keeps the distributions from settling on a token
    t_min: Timestep = 10  # timesteps go from here to the last by 20; low ones, where words matter least, waste a small budget

    def __post_init__(self) -> None:
        for name in ("tokens", "steps", "lr"):
            if not getattr(self, name) > 0:
                raise UserError(f"unlearndiffatk: {name} must be positive, got {getattr(self, name)}.")
        if self.t_min < 0:
            raise UserError(f"unlearndiffatk: t_min is a timestep and cannot be negative, got {self.t_min}.")
        if self.weight_decay < 0:
            raise UserError(f"unlearndiffatk: weight_decay cannot be negative, got {self.weight_decay}; 0 turns it off.")

    def queries(self, context: AttackContext, chunk: Sequence[int], prepared: Prepared) -> Iterator[AttackQuery]:
        if sampling_of(context.model.pipe).one_step_timestep is not None:
            raise NotApplicable(
                "unlearndiffatk scores the denoising of noised images, which a one-step generator never does; leave this attack out."
            )
        model, prompts, x_0 = context.model, [context.prompts[i] for i in chunk], context.base_latents(chunk)
        if self.t_min >= model.num_timesteps:
            raise UserError(f"unlearndiffatk: t_min is a timestep from 0 to {model.num_timesteps - 1}, got {self.t_min}.")
        token_ids = searchable_token_ids(model)
        embeddings = model.token_embeddings()[token_ids.to(model.device)]
        distributions = torch.full((len(chunk), self.tokens, len(token_ids)), 1 / len(token_ids), device=model.device)
        optimizer = torch.optim.Adam([distributions], lr=self.lr, weight_decay=self.weight_decay)
        generators, timesteps = [context.generator(i) for i in chunk], range(self.t_min, model.num_timesteps, 20)
        steps_done = 0
        for round_index in range(context.rounds):
            steps_due = (round_index + 1) * self.steps // context.rounds
            model.set_attention(training=True)
            try:
                for step in range(steps_done, steps_due):
                    t = timesteps[step * len(timesteps) // self.steps]
                    distributions.grad = token_gradient(model, prompts, x_0, t, distributions, embeddings, generators)
                    optimizer.step()
                    distributions.copy_(project_to_simplex(distributions))
            finally:
                model.set_attention(training=False)
            steps_done = steps_due
            yield query_from_ids(model, token_ids[distributions.argmax(-1).cpu()], prompts)


def token_gradient(
    model: DiffusionModel,
    prompts: list[str],
    x_0: Tensor,
    t: int,
    distributions: Tensor,
    embeddings: Tensor,
    generators: list[torch.Generator],
) -> Tensor:
    """Return the gradient (B, k, W) of the paper's objective, |eps - eps_erased(x_t, t, c(d + prompt))|^2, d tokens from `distributions`.

    It is taken at the one-hot tokens and passed straight through to the distributions, clipped to [-1, 1] as in the authors' code.

    Args:
        x_0: [B, C, h, w] latents of images that show the concept.
        distributions: (B, k, W) a distribution over tokens for every position of the prefix.
        embeddings: (W, E) of those tokens.
        generators: one per prompt, so that no prompt's attack depends on the others of its batch.

    Raises:
        FloatingPointError: the gradient is NaN or Inf.
    """
    noise = torch.stack([torch.randn(x_0.shape[1:], generator=g) for g in generators]).to(x_0)
    uniform = torch.stack([torch.rand(distributions.shape[1], 1, generator=g) for g in generators]).to(distributions)
    cumulative = distributions.cumsum(-1)
    sampled = torch.searchsorted(cumulative, uniform * cumulative[..., -1:], right=True).squeeze(-1).clamp(max=distributions.shape[-1] - 1)
    prefix = embeddings[sampled].requires_grad_(True)
    timesteps = torch.full((len(prompts),), t, device=model.device)
    prediction = model.predict(model.add_noise(x_0, noise, timesteps), timesteps, model.encode(prompts, prefix))
    error = prediction - model.schedule.target(x_0, noise)
    (gradient,) = torch.autograd.grad(error.pow(2).flatten(1).mean(1).sum(), prefix)
    if not gradient.isfinite().all():
        raise FloatingPointError(
            f"unlearndiffatk: the gradient at timestep {t} is not finite; {explain_divergence(model.compute_dtype, 0, 'its lr')}."
        )
    return (gradient.flatten(0, 1) @ embeddings.T).reshape(distributions.shape).clamp(-1, 1)


def project_to_simplex(vectors: Tensor) -> Tensor:
    """Return the nearest distribution to every row (..., V): max(row - theta, 0), summing to 1 (Duchi et al., ICML 2008, figure 1).

    theta_j = (sum of the j largest - 1) / j rises with j while the j-th largest stays above it and falls after: theta is its maximum.
    """
    shifted = vectors - vectors.amax(-1, keepdim=True)  # a shift changes nothing but the rounding
    theta = (shifted.sort(-1, descending=True).values.cumsum(-1) - 1) / torch.arange(1, vectors.shape[-1] + 1, device=vectors.device)
    return (shifted - theta.amax(-1, keepdim=True)).clamp(min=0)
