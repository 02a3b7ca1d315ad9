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
def add_adapters(model: DiffusionModel, region: str, rank: int, names: Sequence[str]) -> Iterator[dict[str, Adapter]]:
    """Add adapter sets to the linear and convolution layers of a region, all off; on exit the UNet is what it was.

    Ups start at zero, so that a fresh adapter changes nothing. Factors are fp32 whatever the base is in.
    """
    unet, prefix = model.pipe.unet, "unet."
    parameter_names = set(model.parameter_names(region))
    layers = [n for n, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and f"{prefix}{n}.weight" in parameter_names]
    if not layers:
        raise UserError(f"region {region!r} has no linear or convolution layer of the UNet for an adapter.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what we want
            for name in names:
                unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), name)
        adapter_sets = {name: _adapter_factors(unet, name) for name in names}
        for factors in adapter_sets.values():
            for p in factors.values():
                p.data = p.data.float()
        unet.disable_adapters()
        yield adapter_sets
    finally:
        unet.unload_lora()
        unet.requires_grad_(False)


@contextmanager
def activate_adapter(model: DiffusionModel, name: str, adapter_sets: dict[str, Adapter]) -> Iterator[None]:
    """One adapter set on; afterwards all are off and all can have gradients."""
    unet = model.pipe.unet
    unet.enable_adapters()
    unet.set_adapter(name)
    try:
        yield
    finally:
        unet.disable_adapters()
        for factors in adapter_sets.values():
            for p in factors.values():
                p.requires_grad_(True)


def _adapter_factors(unet: nn.Module, name: str) -> Adapter:
    factors = {}
    for key, p in unet.named_parameters():
        for marker, suffix in (("lora_A", DOWN), ("lora_B", UP)):
            layer, middle, tail = key.partition(f".{marker}.{name}.")
            if middle and tail == "weight":
                factors[f"unet.{layer}.weight{suffix}"] = p
    return factors


def load_factors(factors: Adapter, values: dict[str, torch.Tensor]) -> None:
    """Set an adapter's factors; names that `values` lacks stay as they are."""
    with torch.no_grad():
        for name in factors.keys() & values.keys():
            factors[name].copy_(values[name])
