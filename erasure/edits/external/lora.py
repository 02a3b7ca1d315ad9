"""External LoRA files: factors under the names of the base's own layers, at the scale at which they were trained.

W' = W + s B A (Hu et al., arXiv:2106.09685) with s = alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski, arXiv:2312.03732).
Anything else in a file is refused by name: a LoRA that is applied in part is another model.
"""

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from erasure.edits.deltas import DOWN, UP
from erasure.edits.external.adapter_config import AdapterConfig
from erasure.edits.external.lora_keys import LoraLayer, group_by_layer
from erasure.edits.external.lora_spellings import layers_of
from erasure.errors import IgnoredGateWarning, UserError
from erasure.families.base import DiffusionModel


def read_factors(
    model: DiffusionModel, source: str, tensors: Mapping[str, Tensor], configs: Mapping[str, AdapterConfig], header: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return scaled factors in fp32, by the names of erasure.edits.deltas.

    Args:
        tensors: the content of the file, in the layout of diffusers (old or new), PEFT, kohya or ComfyUI.
        configs: by part, such as "unet" or "text_encoder"; empty if the file itself gives the scale.
        header: the metadata of the file.

    Raises:
        UserError: anything in the file that is not a factor of a layer of the base, or a scale that is missing or ambiguous.
    """
    layers = group_by_layer(model, source, tensors)
    alphas = sum(layer.alpha is not None for layer in layers.values())
    if alphas and configs:
        raise UserError(f"{source} gives its scale twice, by alpha and by a config; remove one of them.")
    if 0 < alphas < len(layers):
        raise UserError(
            f"{source} has an alpha for {alphas} of {len(layers)} layers; programs read the others in different ways. Add the missing ones."
        )
    _warn_about_gates(source, layers, header)
    modules = layers_of(model)
    scaled: dict[str, Tensor] = {}
    for name, layer in layers.items():
        up, down = _factors_of_layer(source, name, layer, modules[name])
        part, _, layer_name = name.partition(".")
        rank = len(down)
        if configs:
            if part not in configs:
                raise UserError(f"the header of {source} gives the scale of {', '.join(configs)} and not of the {part}; add it.")
            scale = configs[part].scale_of(
                [layer_name, f"text_model.{layer_name}"] if part.startswith("text_encoder") else [layer_name], rank, source
            )
        else:
            scale = 1.0 if layer.alpha is None else layer.alpha / rank
        if not scale or not up.count_nonzero():
            continue  # untrained or switched off: it changes nothing
        if layer.fused:  # of a block-diagonal factor, the columns of the other layers are zeros here
            used = up.any(0)
            up, down = up[:, used], down[used]
        scaled |= dict(zip((f"{name}.weight{UP}", f"{name}.weight{DOWN}"), _balance(up.float() * scale, down.float()), strict=True))
    return scaled


def _factors_of_layer(source: str, name: str, layer: LoraLayer, module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return up (O, r) and down (r, I), for a convolution (O, r, 1, 1) and (r, I, k, k).

    The middle factor of a Tucker decomposition is multiplied into the down factor.

    Raises:
        UserError: a factor is missing, or they do not fit the layer.
    """
    weight: Tensor = module.weight  # type: ignore[assignment]  # of a linear or convolution layer
    if missing := {"up", "down"} - layer.factors.keys():
        raise UserError(f"{source} has no {' and no '.join(sorted(missing))} factor of {name}; the file is incomplete.")
    up, down = layer.factors["up"], layer.factors["down"]
    if "mid" in layer.factors and layer.factors["mid"].ndim == 4 and down.shape[2:] == (1, 1):
        down = torch.einsum("abhw,bi->aihw", layer.factors["mid"].float(), down.float()[:, :, 0, 0])
    shape = tuple(weight.shape)
    fits_layer = (
        up.ndim > 1
        and down.ndim > 1
        and up[0].numel() == len(down)
        and (len(up), len(down[0]) * math.prod(down.shape[2:])) == (shape[0], math.prod(shape[1:]))
    )
    if not fits_layer or (down.ndim == 4 and weight.ndim == 4 and down.shape[2:] != weight.shape[2:]):
        raise UserError(
            f"{source}: the factors of {name} are {tuple(up.shape)} and {tuple(down.shape)}, the layer is {shape}; give its own base."
        )
    ones = (1,) * (weight.ndim - 2)
    return up.reshape(len(up), len(down), *ones), down.reshape(len(down), *shape[1:])


def _balance(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Scale both factors to about the same size by a power of two, so that a small scale does not underflow in fp16; keeps the product."""
    magnitudes = [factor.abs().max().item() for factor in (up, down)]
    if not all(math.isfinite(magnitude) and magnitude > 0 for magnitude in magnitudes):
        return up, down
    shift = 2.0 ** round(math.log2(magnitudes[1] / magnitudes[0]) / 2)
    return up * shift, down / shift


def _warn_about_gates(source: str, layers: Mapping[str, LoraLayer], header: Mapping[str, str]) -> None:
    """Warn about SPM (Lyu et al., arXiv:2312.16145), whose gate weighs its rank-1 factors anew for every prompt.

    Its files hold the factors and the prompts they are for.
    """
    if header.get("prompts") and all(len(layer.factors["down"]) == 1 for layer in layers.values() if "down" in layer.factors):
        warnings.warn(
            f"{source} looks like an SPM: rank 1, made for {header['prompts'][:80]!r}. SPM weakens its effect by a gate on prompts far "
            "from these; no gate is applied here, so the audit may show more damage to other prompts than SPM does.",
            IgnoredGateWarning,
            stacklevel=2,
        )
