"""Soft prefix: free tokens before every prompt, fitted so that the erased model says again what the base said (white box).

The attack inside AdvUnlearn (arXiv:2405.15234) with one prefix for all prompts, as textual inversion (arXiv:2208.01618) would learn it.
"""

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
    steps: int = 150  # Adam steps
    lr: float = 0.05  # step size, in units of the input embeddings
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

    def fit(self, model: DiffusionModel, bank: Bank, seed: int) -> tuple[Tensor, float]:
        """A prefix (k, E) for the model as it is now, and its final loss.

        Args:
            bank: answers of the base under prompts that ask for the concept.
        """
        prefix = self.start(model, seed).clone().requires_grad_(True)
        adam, generator = torch.optim.Adam([prefix], lr=self.lr), torch.Generator().manual_seed(seed)
        rows, value = bank.rows("erase"), float("nan")
        model.use_attention(training=True)
        try:
            for _ in range(self.steps):
                batch = bank.batch(rows[torch.randint(len(rows), (self.batch,), generator=generator)], model.device)
                loss = F.mse_loss(model.predict(batch.x_t, batch.t, model.encode(batch.prompts, prefix)), batch.eps_cond)
                prefix.grad = torch.autograd.grad(loss, prefix)[0]
                adam.step()
                value = loss.item()
        finally:
            model.use_attention(training=False)
        return prefix.detach(), value
