"""Edits of the shapes that the methods leave, without training: what moved is random, where it moved is the method's."""

from typing import Any

import torch
from torch import Tensor

from erasure.edits import Edit, EditInfo
from erasure.edits.deltas import DOWN, UP, ZEROED, zeroed
from erasure.families.base import DiffusionModel

CONCEPT = {"name": "Van Gogh", "kind": "style", "prompts": (), "anchor": "", "aliases": ()}


def edit(model: DiffusionModel, tensors: dict[str, Tensor], method: str = "esd", **info: Any) -> Edit:
    """An edit of `model` that holds these tensors."""
    base = {"source": model.source, "fingerprint": model.fingerprint(), "family": model.family, "after": []}
    values: dict[str, Any] = {
        "method": method,
        "product": "weights",
        "fields": {},
        "concepts": [CONCEPT],
        "base": base,
        "seed": 0,
        "precision": "fp32",
        "versions": {},
        "cost": {},
        "known": [],
        "notes": {},
    }
    return Edit(tensors, EditInfo(**values | info))


def trained(model: DiffusionModel, *regions: str, rank: int = 4, noise: float = 0.1) -> Edit:
    """Every parameter of some regions moved, as ESD, SalUn and AdvUnlearn leave it: mostly along few directions, a little everywhere."""
    generator, tensors = torch.Generator().manual_seed(1), {}
    for name in (name for region in regions for name in model.region(region)):
        weight = model.parameters()[name].detach().float()
        delta = noise * torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            flat = weight.flatten(1)
            factors = torch.randn(len(flat), rank, generator=generator) @ torch.randn(rank, flat.shape[1], generator=generator)
            delta += factors.reshape(weight.shape) / rank**0.5
        tensors[name] = (weight + 1e-2 * delta.to(weight.device)).half().cpu()
    return edit(model, tensors)


def low_rank(model: DiffusionModel, rank: int = 3) -> Edit:
    """Factors in all keys and values of cross-attention, as UCE leaves them."""
    generator, tensors = torch.Generator().manual_seed(2), {}
    for name in model.region("xattn-kv"):
        out, width = model.parameters()[name].shape
        tensors[name + UP] = (0.02 * torch.randn(out, rank, generator=generator)).half()
        tensors[name + DOWN] = torch.randn(rank, width, generator=generator).half()
    return edit(model, tensors, "uce")


def pruned(model: DiffusionModel, share: float = 0.02) -> Edit:
    """Entries of the feed-forward layers set to zero, as FIA leaves them."""
    generator, tensors = torch.Generator().manual_seed(3), {}
    for name in model.region("ff-out"):
        if name.endswith(".weight"):
            tensors[name + ZEROED] = zeroed(torch.rand(model.parameters()[name].shape, generator=generator) < share)
    return edit(model, tensors, "fia")
