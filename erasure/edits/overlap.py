"""Do two edits get in each other's way? Shared tensors, the cosine of what they change, and which was made on which."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from erasure.edits import Edit
from erasure.edits import deltas as forms
from erasure.families.base import DiffusionModel


@dataclass(frozen=True)
class PairOverlap:
    """Of two edits in a stack."""

    first: str
    second: str
    shared: int  # tensors that both touch
    cosine: float | None  # of their differences on those tensors; none without shared tensors
    warning: str  # empty when the second was made on top of the first


@torch.no_grad()
def measure_overlap(model: DiffusionModel, edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """Every pair of a stack, as records; `model` holds no edit."""
    base = model.parameters()
    records = []
    for a, b in itertools.combinations(edits, 2):
        shared = sorted(a.moved_parameters() & b.moved_parameters())
        dot, sizes = 0.0, [0.0, 0.0]
        for name in shared:
            original = base[name].detach().float()
            x, y = (forms.apply_delta(edit.tensors, name, original).float() - original for edit in (a, b))
            dot += (x * y).sum().item()
            sizes = [size + part.square().sum().item() for size, part in zip(sizes, (x, y), strict=True)]
        cosine = dot / max((sizes[0] * sizes[1]) ** 0.5, 1e-30) if shared else None
        made_on_top = a.digest() in b.after
        warning = (
            ""
            if made_on_top
            else f"{b.name} was made on the base without {a.name}; neither saw the other, so only the audit of both together counts."
        )
        records.append(asdict(PairOverlap(a.name, b.name, len(shared), cosine, warning)))
    return records
