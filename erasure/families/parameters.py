"""Names of parameters, canonical ones that survive wrappers and library versions, and a fingerprint of the values."""

import hashlib
from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def canonical_name(name: str) -> str:
    """Return a parameter's name without the `text_model.` level, which transformers 5.6 dropped from CLIPTextModel."""
    return name.removeprefix("text_model.")


def unwrap(module: nn.Module) -> nn.Module:
    """Return the network or layer inside the wrappers of torch.compile (`_orig_mod`) and peft (`base_layer`, `get_base_model`)."""
    while True:
        children = module._modules  # a missing attribute of a module costs an exception, and this runs for every module of a network
        inner: Any = children.get("_orig_mod", children.get("base_layer"))
        if inner is None and hasattr(type(module), "get_base_model"):
            inner = module.get_base_model()  # type: ignore[operator]  # a method, of peft.PeftModel
        if inner is None:
            return module
        module = inner


def unwrapped_parameters(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
    """Yield parameters under the names they have when nothing wraps the network or its layers.

    A loaded LoRA turns `to_q.weight` into `to_q.base_layer.weight` and adds its factors next to it; the factors are left out here.
    torch.compile adds `_orig_mod`.
    """
    network = unwrap(network)
    for name, p in network._parameters.items():
        if p is not None:
            yield prefix + name, p
    for name, child in network._modules.items():
        if child is not None:
            yield from unwrapped_parameters(child, f"{prefix}{name}.")


def named_parameters(networks: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return every parameter of some networks as "<prefix>.<canonical name>"; tied parameters appear once."""
    parameters: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for prefix, network in networks.items():
        for name, p in unwrapped_parameters(network):
            if id(p) not in seen:
                parameters[f"{prefix}.{canonical_name(name)}"] = p
            seen.add(id(p))
    return parameters


def find_linear_layers(networks: Mapping[str, nn.Module], names: Container[str]) -> dict[str, nn.Linear]:
    """Return the linear layers of some networks whose weights have one of these names, by that name."""
    layers = {}
    for prefix, network in networks.items():
        for name, layer in network.named_modules():
            weight = f"{prefix}.{canonical_name(name)}.weight"
            if isinstance(layer, nn.Linear) and weight in names:
                layers[weight] = layer
    return layers


def fingerprint(networks: Mapping[str, nn.Module], overrides: Mapping[str, Tensor] | None = None) -> str:
    """Return the SHA-256 hex digest of the networks' parameters in fp16.

    Args:
        overrides: values to hash instead of those in the networks, by the names of `named_parameters`.
    """
    digest, overrides = hashlib.sha256(), overrides or {}
    for name, p in sorted(named_parameters(networks).items()):
        value = overrides.get(name, p)
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()
