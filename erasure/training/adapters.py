"""Low-rank adapter sets on one frozen denoiser (Hu et al., LoRA, arXiv:2106.09685) with peft: several networks in the memory of one."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from erasure.edits.deltas import DOWN, UP
from erasure.errors import UserError
from erasure.families.base import DiffusionModel

Adapter = dict[str, nn.Parameter]  # factors by "<denoiser>.<layer>.weight::up" and "::down", their names in an edit


@contextmanager
def add_adapters(model: DiffusionModel, region: str, rank: int, names: Sequence[str]) -> Iterator[dict[str, Adapter]]:
    """Add adapter sets, all switched off, to the linear and convolution layers of a region; on exit it is as before.

    Up factors start at zero, so a fresh adapter changes nothing. Factors are fp32 whatever the dtype of the base.

    Raises:
        UserError: The region is unknown or has no linear or convolution layer of the denoiser.
    """
    from peft import LoraConfig  # peft takes seconds to load

    denoiser: Any = model.denoiser
    prefix = next(iter(model.networks))
    parameter_names = set(model.parameter_names(region))
    layers = [n for n, m in denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and f"{prefix}.{n}.weight" in parameter_names]
    if not layers:
        raise UserError(f"region {region!r} has no linear or convolution layer of the denoiser for an adapter.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are intended
            for name in names:
                denoiser.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), name)
        adapter_sets = {name: _adapter_factors(denoiser, prefix, name) for name in names}
        for factors in adapter_sets.values():
            for p in factors.values():
                p.data = p.data.float()
        denoiser.disable_adapters()
        yield adapter_sets
    finally:
        denoiser.unload_lora()
        denoiser.requires_grad_(False)


@contextmanager
def activate_adapter(model: DiffusionModel, name: str, adapter_sets: dict[str, Adapter]) -> Iterator[None]:
    """Switch one adapter set on; on exit all are off and all can have gradients."""
    denoiser: Any = model.denoiser
    denoiser.enable_adapters()
    denoiser.set_adapter(name)
    try:
        yield
    finally:
        denoiser.disable_adapters()
        for factors in adapter_sets.values():
            for p in factors.values():
                p.requires_grad_(True)


def _adapter_factors(denoiser: nn.Module, prefix: str, name: str) -> Adapter:
    """Return the parameters of one adapter set under their names in an edit."""
    factors = {}
    for key, p in denoiser.named_parameters():
        for marker, suffix in (("lora_A", DOWN), ("lora_B", UP)):
            layer, middle, tail = key.partition(f".{marker}.{name}.")
            if middle and tail == "weight":
                factors[f"{prefix}.{layer}.weight{suffix}"] = p
    return factors


def load_factors(factors: Adapter, values: dict[str, torch.Tensor]) -> None:
    """Copy values into parameters of the same name; the others stay as they are."""
    with torch.no_grad():
        for name in factors.keys() & values.keys():
            factors[name].copy_(values[name])
