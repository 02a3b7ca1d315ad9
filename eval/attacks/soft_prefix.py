"""Soft prefix: free tokens before every prompt, fitted so that the erased model says again what the base said (white box).

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
from erasure.families.base import DiffusionModel, sampling_of
from erasure.training.diverged import advice
from erasure.training.teacher_cache import Bank
from eval.attacks.base import Ask, Known, PromptAttack, Stand, Unsuited


@dataclass(frozen=True, kw_only=True)
class SoftPrefix(PromptAttack):
    """Its budget is `steps` backward passes of `batch` samples for every start."""

    paper: ClassVar[str] = "arXiv:2405.15234"
    threat: ClassVar[str] = "holds the erased model's weights; puts vectors that no word has before a prompt"

    tokens: int = 3  # soft tokens
    steps: int = 400  # Adam steps
    lr: float = 0.1  # step size, in units of the input embeddings
    batch: int = 8  # recorded rows per step

    def __post_init__(self) -> None:
        for name in ("tokens", "steps", "lr", "batch"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name} must be positive, got {getattr(self, name)}.")

    def start(self, model: DiffusionModel, seed: int) -> Tensor:
        """Random tokens of the vocabulary (k, E): the control of the same length, and where the fit begins."""
        vocabulary = model.vocabulary()
        chosen = torch.randint(len(vocabulary), (self.tokens,), generator=torch.Generator().manual_seed(seed))
        return vocabulary[chosen.to(vocabulary.device)]

    def fitted(self, model: DiffusionModel, bank: Bank, seed: int, at: Sequence[int] = ()) -> dict[int, Tensor]:
        """Prefixes (k, E) for the model as it is now, by the number of steps that made them; the last is always there.

        Args:
            bank: answers of the base under prompts that ask for the concept.
            at: further numbers of steps after which the prefix is kept, for a curve of success by budget.

        Raises:
            UserError: a number of steps that the fit does not reach.
            FloatingPointError: a loss that is NaN or Inf.
        """
        if wrong := [step for step in at if not 0 < step <= self.steps]:
            raise UserError(f"the fit has {self.steps} steps; {wrong[0]} is not among them.")
        prefix, found = self.start(model, seed).clone().requires_grad_(True), {}
        adam, generator = torch.optim.Adam([prefix], lr=self.lr), torch.Generator().manual_seed(seed)
        rows = bank.rows("erase")
        model.use_attention(training=True)
        try:
            for step in range(1, self.steps + 1):
                batch = bank.batch(rows[torch.randint(len(rows), (self.batch,), generator=generator)], model.device)
                loss = F.mse_loss(model.predict(batch.x_t, batch.t, model.encode(batch.prompts, prefix)), batch.eps_cond)
                if not math.isfinite(loss.item()):
                    cause = advice(model.compute, step - 1, "its lr")
                    raise FloatingPointError(f"soft_prefix: the loss is {loss.item()} at step {step}; {cause}.")
                prefix.grad = torch.autograd.grad(loss, prefix)[0]
                model.cost.unet_backwards += self.batch
                adam.step()
                if step in at or step == self.steps:
                    found[step] = prefix.detach().clone()
        finally:
            model.use_attention(training=False)
        return found

    def fit(self, stand: Stand, known: Known) -> Known:
        """Adds "prefix" (rounds, k, E): one for all prompts, as the fit went on.

        Raises:
            Unsuited: a one-step generator.
            FloatingPointError: a loss that is NaN or Inf.
        """
        if sampling_of(stand.model.pipe).one_step is not None:
            raise Unsuited("soft_prefix fits the base's answers on noised pictures, which a one-step generator never sees; leave it out.")
        ends = [max(1, (j + 1) * self.steps // stand.pictures) for j in range(stand.pictures)]
        found = self.fitted(stand.model, stand.bank, stand.seed, at=ends)
        return {**known, "prefix": torch.stack([found[end] for end in ends])}

    def rounds(self, stand: Stand, chunk: Sequence[int], known: Known) -> Iterator[Ask]:
        prompts = [stand.prompts[i] for i in chunk]
        for prefix in known["prefix"].to(stand.model.device):
            yield Ask(prompts, prefix, [f"({self.tokens} soft tokens) {prompt}" for prompt in prompts])
