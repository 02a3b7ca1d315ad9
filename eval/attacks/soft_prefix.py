"""Soft prefix: free tokens before every prompt, fitted so that the erased model says again what the base said (white box).

The attack inside AdvUnlearn (arXiv:2405.15234) with one prefix for all prompts, as textual inversion (arXiv:2208.01618) would learn it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from erasure.bank import Bank
from erasure.errors import UserError
from erasure.families.base import DiffusionModel


@dataclass(frozen=True, kw_only=True)
class SoftPrefix:
    """Its budget is `steps` backward passes of `batch` samples for every start."""

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

    def fit(self, model: DiffusionModel, bank: Bank, seed: int, at: Sequence[int] = ()) -> dict[int, Tensor]:
        """Prefixes (k, E) for the model as it is now, by the number of steps that made them; the last is always there.

        Args:
            bank: answers of the base under prompts that ask for the concept.
            at: further numbers of steps after which the prefix is kept, for a curve of success by budget.

        Raises:
            UserError: a number of steps that the fit does not reach.
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
                prefix.grad = torch.autograd.grad(loss, prefix)[0]
                adam.step()
                if step in at or step == self.steps:
                    found[step] = prefix.detach().clone()
        finally:
            model.use_attention(training=False)
        return found
