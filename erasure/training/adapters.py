"""Low-rank adapter sets on one frozen UNet (Hu et al., LoRA, arXiv:2106.09685), through peft: several networks for the memory of one."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig
from torch import nn

from erasure.edits.deltas import DOWN, UP
from erasure.errors import UserError
from erasure.families.base import DiffusionModel

Adapter = dict[str, nn.Parameter]  # factors by "unet.<layer>.weight::up" and "::down", the names under which an edit keeps them


@contextmanager
def adapters(model: DiffusionModel, region: str, rank: int, names: Sequence[str]) -> Iterator[dict[str, Adapter]]:
    """Add adapter sets to the linear and convolution layers of a region, all off; on exit the UNet is what it was.

    Ups start at zero, so that a fresh adapter changes nothing. Factors are fp32 whatever the base is in.
    """
    unet, prefix = model.pipe.unet, "unet."
    chosen = set(model.region(region))
    layers = [n for n, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and f"{prefix}{n}.weight" in chosen]
    if not layers:
        raise UserError(f"region {region!r} has no linear or convolution layer of the UNet for an adapter.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what we want
            for name in names:
                unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), name)
        found = {name: _factors(unet, name) for name in names}
        for factors in found.values():
            for p in factors.values():
                p.data = p.data.float()
        unet.disable_adapters()
        yield found
    finally:
        unet.unload_lora()
        unet.requires_grad_(False)


@contextmanager
def using(model: DiffusionModel, name: str, sets: dict[str, Adapter]) -> Iterator[None]:
    """One adapter set on; afterwards all are off and all can have gradients."""
    unet = model.pipe.unet
    unet.enable_adapters()
    unet.set_adapter(name)
    try:
        yield
    finally:
        unet.disable_adapters()
        for factors in sets.values():
            for p in factors.values():
                p.requires_grad_(True)


def _factors(unet: nn.Module, name: str) -> Adapter:
    found = {}
    for key, p in unet.named_parameters():
        for part, suffix in (("lora_A", DOWN), ("lora_B", UP)):
            layer, middle, rest = key.partition(f".{part}.{name}.")
            if middle and rest == "weight":
                found[f"unet.{layer}.weight{suffix}"] = p
    return found


def put(factors: Adapter, values: dict[str, torch.Tensor]) -> None:
    """Set an adapter's factors; names that `values` lacks stay as they are."""
    with torch.no_grad():
        for name in factors.keys() & values.keys():
            factors[name].copy_(values[name])
