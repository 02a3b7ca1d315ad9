"""Edits of the shapes that the methods leave, without training: what moved is random, where it moved is the method's."""

from typing import Any

import torch
from torch import Tensor

from erasure.edits import Edit, EditInfo
from erasure.edits.deltas import DOWN, UP, ZEROED, to_zeroed_indices
from erasure.families.base import DiffusionModel

CONCEPT = {"name": "Van Gogh", "kind": "style", "prompts": (), "anchor": "", "aliases": ()}


def make_edit(model: DiffusionModel, tensors: dict[str, Tensor], method: str = "esd", **info: Any) -> Edit:
    """An edit of `model` that holds these tensors."""
    base = {"source": model.source, "fingerprint": model.fingerprint(), "family": model.family, "after": []}
    fields: dict[str, Any] = {
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
    return Edit(tensors, EditInfo(**fields | info))


def trained_edit(model: DiffusionModel, *regions: str, rank: int = 4, noise: float = 0.1) -> Edit:
    """Every parameter of some regions moved, as ESD, SalUn and AdvUnlearn leave it: mostly along few directions, a little everywhere."""
    generator, tensors = torch.Generator().manual_seed(1), {}
    for name in (name for region in regions for name in model.parameter_names(region)):
        weight = model.parameters()[name].detach().float()
        delta = noise * torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            flat = weight.flatten(1)
            factors = torch.randn(len(flat), rank, generator=generator) @ torch.randn(rank, flat.shape[1], generator=generator)
            delta += factors.reshape(weight.shape) / rank**0.5
        tensors[name] = (weight + 1e-2 * delta.to(weight.device)).half().cpu()
    return make_edit(model, tensors)


def low_rank_edit(model: DiffusionModel, rank: int = 3) -> Edit:
    """Factors in all keys and values of cross-attention, as UCE leaves them."""
    generator, tensors = torch.Generator().manual_seed(2), {}
    for name in model.parameter_names("xattn-kv"):
        out, width = model.parameters()[name].shape
        tensors[name + UP] = (0.02 * torch.randn(out, rank, generator=generator)).half()
        tensors[name + DOWN] = torch.randn(rank, width, generator=generator).half()
    return make_edit(model, tensors, "uce")


def pruned_edit(model: DiffusionModel, fraction: float = 0.02) -> Edit:
    """Entries of the feed-forward layers set to zero, as FIA leaves them."""
    generator, tensors = torch.Generator().manual_seed(3), {}
    for name in model.parameter_names("ff-out"):
        if name.endswith(".weight"):
            tensors[name + ZEROED] = to_zeroed_indices(torch.rand(model.parameters()[name].shape, generator=generator) < fraction)
    return make_edit(model, tensors, "fia")
