"""What the two pocket judges share: loading a Reader and reading labels with their probabilities."""

import hashlib
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from erasure.errors import UserError
from erasure.loading.loader import POCKET
from erasure.pocket.canvas import SIZE
from erasure.pocket.reader import LABELS, Reader


@cache
def reader(axis: str) -> Reader:
    labels = LABELS[axis]
    network = Reader(len(labels))
    network.load_state_dict({name: p.float() for name, p in load_file(POCKET / "judges" / f"{axis}.safetensors").items()})
    return network.eval().requires_grad_(False)


def identity(axis: str) -> dict[str, Any]:
    weights = (POCKET / "judges" / f"{axis}.safetensors").read_bytes()
    return {"weights": hashlib.sha256(weights).hexdigest(), "labels": list(LABELS[axis]), "size": SIZE}


@torch.no_grad()
def read(axis: str, images: Tensor) -> list[dict[str, Any]]:
    """Label and probability per image, rounded so that a row prints the same everywhere."""
    if images.shape[1:] != (3, SIZE, SIZE):
        raise UserError(f"pocket judges read {SIZE}x{SIZE} RGB pictures, got {tuple(images.shape[1:])}.")
    shares = reader(axis)(images.float().cpu()).softmax(-1)
    best = shares.max(-1)
    return [{"label": LABELS[axis][i], "p": round(p, 4)} for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
