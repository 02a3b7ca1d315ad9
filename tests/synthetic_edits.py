"""Edits with the shapes that the methods leave, without training: the values are random, their places are the method's."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from erasure.concept import Concept
from erasure.edits import Edit, EditInfo, parameters_of
from erasure.edits.checks import networks_of
from erasure.edits.deltas import DOWN, UP, ZEROED, to_zeroed_indices
from erasure.families.base import DiffusionModel
from erasure.families.parameters import fingerprint

EDIT_KINDS = ("value", "low-rank", "zeroed", "guidance", "one-step")
CAT = Concept(name="cat", kind="object").to_dict()
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
        "concept_checks": [],
        "notes": {},
    }
    return Edit(tensors, EditInfo(**fields | info))


def trained_edit(model: DiffusionModel, *regions: str, rank: int = 4, noise: float = 0.1) -> Edit:
    """Every parameter of some regions moved, as ESD, SalUn and AdvUnlearn leave it: mostly along few directions, a little everywhere."""
    generator, tensors, parameters = torch.Generator().manual_seed(1), {}, model.parameters()
    for name in (name for region in regions for name in model.parameter_names(region)):
        weight = parameters[name].detach().float()
        delta = noise * torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            flat = weight.flatten(1)
            factors = torch.randn(len(flat), rank, generator=generator) @ torch.randn(rank, flat.shape[1], generator=generator)
            delta += factors.reshape(weight.shape) / rank**0.5
        tensors[name] = (weight + 1e-2 * delta.to(weight.device)).half().cpu()
    return make_edit(model, tensors)


def edit_of_layers(model: DiffusionModel, names: Iterable[str], rank: int = 2, size: float = 0.03) -> Edit:
    """A change of exactly this rank in every one of these matrices, so that a LoRA holds all of it but for rounding."""
    generator, tensors, parameters = torch.Generator().manual_seed(4), {}, model.parameters()
    for name in sorted(names):
        weight = parameters[name].detach().float()
        flat = weight.flatten(1)
        factors = torch.randn(len(flat), rank, generator=generator) @ torch.randn(rank, flat.shape[1], generator=generator)
        tensors[name] = (weight + size * factors.reshape(weight.shape)).half()
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


def random_edit(model: DiffusionModel, region: str = "xattn", seed: int = 0) -> Edit:
    """New random values for every parameter of a region."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(model.parameters()[name].shape, generator=generator).half() for name in model.parameter_names(region)}
    return make_edit(model, tensors, fields={"lr": 1e-3}, concepts=[CAT])


def edit_of_everything(model: DiffusionModel, concept: str = "Van Gogh; <b>") -> Edit:
    """An edit that moves every parameter of UNet and text encoder."""
    torch.manual_seed(1)
    tensors = {name: (p.detach() + 0.01 * torch.randn_like(p)).half() for name, p in model.parameters().items()}
    return make_edit(model, tensors, concepts=[Concept(name=concept, kind="style").to_dict()])


def edit_of_kind(pipe: Any, kind: str, seed: int = 0, layers: int = 0) -> Edit:
    """An edit of the tiny pipeline's cross-attention, of one of EDIT_KINDS; `layers`: of the first so many weights alone."""
    generator = torch.Generator().manual_seed(seed)
    names = [name for name in parameters_of(pipe) if ".attn2.to_" in name and name.endswith(".weight")][: layers or None]
    tensors: dict[str, Tensor] = {}
    for name in names if kind != "guidance" else ():
        shape = parameters_of(pipe)[name].shape
        if kind in ("value", "one-step"):
            tensors[name] = torch.randn(shape, generator=generator).half()
        elif kind == "low-rank":
            tensors[name + UP] = torch.randn(shape[0], 2, generator=generator).half()
            tensors[name + DOWN] = torch.randn(2, shape[1], generator=generator).half()
        else:
            tensors[name + ZEROED] = torch.arange(seed, 20 + seed, 2, dtype=torch.int32)
    guided = kind == "guidance"
    info = EditInfo(
        method="sld" if guided else "esd",
        product=kind if kind in ("guidance", "one-step") else "weights",
        fields={"warmup": 0.0} if guided else {"init_timestep": 625},
        concepts=[{**CAT, "name": f"cat {seed}"}],
        base={"source": "tiny", "fingerprint": fingerprint(networks_of(pipe)), "family": "sd1", "after": []},
        seed=0,
        precision="fp32",
        versions={},
        cost={},
        concept_checks=[],
        notes={},
    )
    return Edit(tensors, info)


def write_with_checksum(folder: Path, tensors: dict[str, torch.Tensor] | bytes, record: dict[str, Any]) -> Path:
    """Write an edit whose checksum is right, whatever it holds."""
    file = folder / "edit.safetensors"
    if isinstance(tensors, bytes):
        file.write_bytes(tensors)
    else:
        save_file(tensors, file)
    (folder / "edit.json").write_text(json.dumps({**record, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}))
    return folder
