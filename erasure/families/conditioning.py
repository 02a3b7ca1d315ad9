"""What a denoiser reads of prompts, as one value: rows can be indexed, expanded, concatenated and moved together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

ConditioningPart = Literal["sequence", "pooled"]  # the fields of a Conditioning


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The text side of B samples. Everything else a network reads (sizes, positions, times) follows from the latents' shape."""

    sequence: Tensor  # (B, L, D) one row a token
    pooled: Tensor | None = None  # (B, P) one vector a prompt, of families that read one

    def __len__(self) -> int:
        return len(self.sequence)

    def __getitem__(self, rows: Any) -> "Conditioning":
        """Return the rows that a slice, an index tensor or a mask selects; like a tensor's, a slice shares memory."""
        if isinstance(rows, int):
            rows = slice(rows, rows + 1 or None)
        return self.map(lambda part: part[rows])

    def __iter__(self) -> Iterator["Conditioning"]:
        """Yield every row as a conditioning of one sample."""
        return (self[i] for i in range(len(self)))

    def expand(self, count: int) -> "Conditioning":
        """Return one row repeated for `count` samples, without a copy."""
        return self.map(lambda part: part.expand(count, *part.shape[1:]))

    def zero_rows(self, is_zero: Sequence[bool]) -> "Conditioning":
        """Return a copy whose marked rows are zeros."""
        rows = torch.tensor(is_zero, device=self.sequence.device)
        return self.map(lambda part: part.masked_fill(rows.reshape(-1, *[1] * (part.ndim - 1)), 0.0))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """Return a conditioning whose tensors a function has changed."""
        return Conditioning(change(self.sequence), None if self.pooled is None else change(self.pooled))


def concatenate(parts: Sequence[Conditioning]) -> Conditioning:
    """Return the rows of several conditionings of one model, one after another."""
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Conditioning(torch.cat([part.sequence for part in parts]), torch.cat(pooled) if pooled else None)
