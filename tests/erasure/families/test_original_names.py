"""The names of the original layouts, here and in the tests' own tables, against diffusers' converters, which go the other way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.loaders import lora_conversion_utils, single_file_utils
from torch import Tensor

from erasure.export.lora import lora_targets_of
from erasure.export.lora_names import fuse_factors
from erasure.families.flux import Flux
from erasure.families.flux2_klein import Flux2Klein
from erasure.families.original_names import original_layers
from erasure.families.stable_diffusion_3 import StableDiffusion3
from erasure.families.stable_diffusion_xl import StableDiffusionXL
from tests import tiny_families, tiny_sd3
from tests.clients import comfyui_families, original_transformers

WIDTH = 3072  # which diffusers' converter of FLUX.1 assumes
MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "sd3": (lambda: StableDiffusion3(tiny_sd3.pipeline(), "tiny", "fp32"), "sd3"),
    "flux": (lambda: Flux(tiny_families.flux(), "tiny", "fp32", image_size=32), "flux"),
    "flux2-klein": (lambda: Flux2Klein(tiny_families.klein(), "tiny", "fp32", image_size=32), "flux2"),
}


class Checkpoint(dict[str, Tensor]):
    """A checkpoint whose biases and norms, which say nothing here, are made up when they are asked for."""

    def pop(self, key: str, *default: Any) -> Tensor:
        if key in self:
            return super().pop(key)
        return torch.zeros(7 * WIDTH if "linear1" in key else 6)


def marked(layers: set[str]) -> dict[str, Tensor]:
    """A column of numbers for every layer, none of them twice; as many rows as a released model's."""
    tensors, start = {}, 0
    for layer in sorted(layers):
        fused = any(part in layer for part in (".to_q", ".to_k", ".to_v", ".add_q_", ".add_k_", ".add_v_"))
        rows = 9 * WIDTH if "to_qkv_mlp" in layer else WIDTH if fused else 4 * WIDTH if layer.endswith("proj_mlp") else 12
        tensors[layer] = torch.arange(start, start + rows).float()[:, None]
        start += rows
    return tensors


@pytest.mark.parametrize("family", MODELS)
def test_the_original_names_are_diffusers(family: str) -> None:
    build, converter = MODELS[family]
    layers = {name.removesuffix(".weight") for name in lora_targets_of(build()) if name.startswith("transformer.")}
    values = marked({layer.removeprefix("transformer.") for layer in layers})
    originals = Checkpoint()
    for original, held in original_layers(family, values).items():
        matrix = torch.cat([values[part] for part in held.parts])
        originals[f"{original}.weight"] = torch.cat(matrix.chunk(2)[::-1]) if held.halves_swapped else matrix
    for layer, place in original_transformers.places(layers, WIDTH).items():
        own = values[layer.removeprefix("transformer.")]
        assert torch.equal(original_transformers.cut(originals[f"{place.original}.weight"], place, len(own)), own), layer
    originals |= {f"{name.removesuffix('.weight')}.bias": torch.zeros(len(value)) for name, value in originals.items()}
    if family == "flux2-klein":
        originals = Checkpoint({name: value for name, value in originals.items() if name.endswith(".weight")})
    originals |= {"pos_embed": torch.zeros(1)} if family == "sd3" else {}
    converted = getattr(single_file_utils, f"convert_{converter}_transformer_checkpoint_to_diffusers")(originals)
    for layer, value in values.items():
        assert torch.equal(converted[f"{layer}.weight"], value), layer


def test_diffusers_splits_single_blocks_of_flux_at_its_released_width() -> None:
    """Of q, k, v and the MLP's input, k does not move."""
    q, k, v, mlp = (f"single_transformer_blocks.0.{part}" for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
    layers = original_layers("flux", [q, k, v, mlp, "transformer_blocks.0.attn.to_q"])
    assert layers["single_blocks.0.linear1"].parts == (q, k, v, mlp)
    shapes = [torch.Size((WIDTH, 8))] * 3 + [torch.Size((4 * WIDTH, 8))]
    pairs = [None if i == 1 else (torch.randn(shape[0], 2), torch.randn(2, 8)) for i, shape in enumerate(shapes)]
    up, down = fuse_factors(pairs, shapes)
    stem = "lora_unet_single_blocks_0_linear1"
    file = {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down, f"{stem}.alpha": torch.tensor(8.0)}
    converted = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers(file)
    for layer, pair in zip((q, k, v, mlp), pairs, strict=True):
        b, a = (converted[f"transformer.{layer}.{role}.weight"] for role in ("lora_B", "lora_A"))
        assert b.shape[1] == 2 and torch.allclose(b @ a, pair[0] @ pair[1] if pair else torch.zeros(len(b), 8), atol=1e-5)


def test_the_original_names_of_sdxl_are_diffusers() -> None:
    model = StableDiffusionXL(tiny_families.sdxl(), "tiny", "fp32")
    layers = {name.removesuffix(".weight") for name in lora_targets_of(model) if name.startswith("unet.")}
    ours = original_layers("sdxl", {layer.removeprefix("unet.") for layer in layers})
    numbers = {f"model.diffusion_model.{name}.weight": torch.tensor(i) for i, name in enumerate(ours)}
    numbers |= {f"{name.removesuffix('weight')}bias": torch.tensor(-1) for name in numbers}
    config = {**model.pipe.unet.config, "class_embed_type": None}
    back = single_file_utils.convert_ldm_unet_checkpoint(numbers, config)
    assert {name.removesuffix(".weight"): list(ours)[i] for name, i in back.items() if name.endswith(".weight")} == {
        layer.parts[0]: name for name, layer in ours.items()
    }
    theirs = {held[0][0]: name for name, held, _ in comfyui_families.unet_names(sorted(layers)) if name.startswith("diffusion_model.")}
    assert theirs == {f"unet.{layer.parts[0]}": f"diffusion_model.{name}" for name, layer in ours.items()}
