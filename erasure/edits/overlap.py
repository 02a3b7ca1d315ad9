"""Whether two edits interfere: shared tensors, the cosine of their changes, and which was made on top of which."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from erasure.edits import Edit, deltas
from erasure.families.base import DiffusionModel


@dataclass(frozen=True)
class PairOverlap:
    """The overlap of two edits in a stack."""

    first: str
    second: str
    shared: int  # tensors that both change
    cosine: float | None  # of their changes to those tensors; None without shared tensors
    warning: str  # empty when the second was made on top of the first


@torch.no_grad()
def measure_overlap(model: DiffusionModel, edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """Return a record of `PairOverlap` for every pair of edits; `model` must hold no edit."""
    base = model.parameters()
    records = []
    for a, b in itertools.combinations(edits, 2):
        shared = sorted(a.moved_parameters() & b.moved_parameters())
        dot, squared_norms = 0.0, [0.0, 0.0]
        for name in shared:
            original = base[name].detach().float()
            x, y = (deltas.apply_delta(edit.tensors, name, original).float() - original for edit in (a, b))
            dot += (x * y).sum().item()
            squared_norms = [norm + delta.square().sum().item() for norm, delta in zip(squared_norms, (x, y), strict=True)]
        cosine = dot / max((squared_norms[0] * squared_norms[1]) ** 0.5, 1e-30) if shared else None
        made_on_top = a.digest() in b.after
        warning = (
            ""
            if made_on_top
            else f"{b.name} was made on the base without {a.name}; neither saw the other, so only an audit of both together counts."
        )
        records.append(asdict(PairOverlap(a.name, b.name, len(shared), cosine, warning)))
    return records
