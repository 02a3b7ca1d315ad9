"""Soft prefix: free embeddings before every prompt, fitted so that the erased model predicts what the base predicted (white box).

The attack inside AdvUnlearn (arXiv:2405.15234) with one prefix for all prompts, as textual inversion (arXiv:2208.01618) would learn it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.sampling import sampling_of
from erasure.training.divergence import explain_divergence
from erasure.training.teacher_cache import TeacherCache
from eval.attacks.base import AttackContext, AttackQuery, NotApplicable, Prepared, PromptAttack


@dataclass(frozen=True, kw_only=True)
class SoftPrefix(PromptAttack):
    """Adam on one prefix; the budget is `steps` backward passes of `batch` samples."""

    paper: ClassVar[str] = "arXiv:2405.15234"
    threat: ClassVar[str] = "has the erased model's weights; puts vectors that no word has before a prompt"

    tokens: int = 3  # soft tokens
    steps: int = 400  # Adam steps
    lr: float = 0.1  # step size, in units of the input embeddings
    batch: int = 8  # rows of the teacher cache per step

    def __post_init__(self) -> None:
        for name in ("tokens", "steps", "lr", "batch"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name} must be positive, got {getattr(self, name)}.")

    def initial_prefix(self, model: DiffusionModel, seed: int) -> Tensor:
        """Return the embeddings of random tokens (k, E): where the fit starts, and a control of the same length."""
        vocabulary = model.token_embeddings()
        token_ids = torch.randint(len(vocabulary), (self.tokens,), generator=torch.Generator().manual_seed(seed))
        return vocabulary[token_ids.to(vocabulary.device)]

    def fit_prefixes(self, model: DiffusionModel, cache: TeacherCache, seed: int, snapshot_steps: Sequence[int] = ()) -> dict[int, Tensor]:
        """Fit a prefix to the model as it is now; return snapshots (k, E) by number of steps, always with the last.

        Args:
            cache: predictions of the base under prompts that ask for the concept.
            snapshot_steps: more numbers of steps after which to save the prefix, for a curve of success by budget.

        Raises:
            UserError: the fit does not reach one of the snapshot steps.
            FloatingPointError: the loss is NaN or Inf.
        """
        if unreachable := [step for step in snapshot_steps if not 0 < step <= self.steps]:
            raise UserError(f"the fit has {self.steps} steps; {unreachable[0]} is not among them.")
        prefix, prefixes = self.initial_prefix(model, seed).clone().requires_grad_(True), {}
        optimizer, generator = torch.optim.Adam([prefix], lr=self.lr), torch.Generator().manual_seed(seed)
        rows = cache.rows("erase")
        model.set_attention(training=True)
        try:
            for step in range(1, self.steps + 1):
                batch = cache.gather_batch(rows[torch.randint(len(rows), (self.batch,), generator=generator)], model.device)
                loss = F.mse_loss(model.predict(batch.x_t, batch.t, model.encode(batch.prompts, prefix)), batch.pred_cond)
                if not math.isfinite(loss.item()):
                    cause = explain_divergence(model.compute_dtype, step - 1, "its lr")
                    raise FloatingPointError(f"soft_prefix: the loss is {loss.item()} at step {step}; {cause}.")
                prefix.grad = torch.autograd.grad(loss, prefix)[0]
                optimizer.step()
                if step in snapshot_steps or step == self.steps:
                    prefixes[step] = prefix.detach().clone()
        finally:
            model.set_attention(training=False)
        return prefixes

    def fit(self, context: AttackContext, prepared: Prepared) -> Prepared:
        """Add "prefix" (rounds, k, E), fp32: one for all prompts, as the fit went on.

        Raises:
            NotApplicable: the model is a one-step generator.
            FloatingPointError: the loss is NaN or Inf.
        """
        if sampling_of(context.model.pipe).one_step_timestep is not None:
            raise NotApplicable(
                "soft_prefix fits the base's predictions on noised images, which a one-step generator never sees; leave this attack out."
            )
        snapshot_steps = [max(1, (j + 1) * self.steps // context.rounds) for j in range(context.rounds)]
        prefixes = self.fit_prefixes(context.model, context.cache, context.seed, snapshot_steps=snapshot_steps)
        return {**prepared, "prefix": torch.stack([prefixes[step] for step in snapshot_steps])}

    def queries(self, context: AttackContext, chunk: Sequence[int], prepared: Prepared) -> Iterator[AttackQuery]:
        prompts = [context.prompts[i] for i in chunk]
        for prefix in prepared["prefix"].to(context.model.device):
            yield AttackQuery(prompts, prefix, [f"({self.tokens} soft tokens) {prompt}" for prompt in prompts])
