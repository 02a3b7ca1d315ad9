"""How LoRA files spell the names of a model's layers, in the layouts of diffusers, PEFT, kohya and ComfyUI."""

from collections.abc import Iterable

from torch import nn

from erasure.families.base import DiffusionModel
from erasure.families.original_names import OriginalLayer, original_layers
from erasure.families.parameters import canonical_name

TEXT_PREFIXES = {  # before the dot: diffusers' and ComfyUI's names, after it kohya's, with underscores for dots
    "text_encoder": (("text_encoder.", "text_encoders.clip_l.transformer."), ("lora_te_", "lora_te1_")),
    "text_encoder_2": (("text_encoder_2.", "text_encoders.clip_g.transformer."), ("lora_te2_",)),
}
ORIGINAL_NAMES = ("sdxl", "sd3", "pocket-flow", "flux", "flux2-klein")  # families whose files may have the names of the original layout
DIFFUSERS_NAMES_ALONE = ("sd1", "sd2", "pocket")  # families whose text encoder has no names of ComfyUI's own here


def layers_of(model: DiffusionModel) -> dict[str, nn.Module]:
    """Return the layers that a LoRA can change, by "unet.<name>" and "text_encoder.<name>"."""
    return {
        f"{part}.{canonical_name(name)}": module
        for part, network in model.networks.items()
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def spellings_of(model: DiffusionModel) -> dict[str, OriginalLayer]:
    """Map every spelling of a layer's name, without PEFT's prefix and with attention processors' names resolved, to what it holds.

    That is one layer, or several that the original layout keeps in one matrix. The parts are full names, such as "unet.conv_in".
    """
    names, parts = list(layers_of(model)), list(model.networks)
    spellings: dict[str, OriginalLayer] = {}
    for part in parts:
        layers = [name.removeprefix(f"{part}.") for name in names if name.startswith(f"{part}.")]
        if part.startswith("text_encoder"):
            spellings |= _text_spellings(model, part, layers)
        else:
            spellings |= _denoiser_spellings(model, part, layers)
    return spellings


def _denoiser_spellings(model: DiffusionModel, part: str, layers: Iterable[str]) -> dict[str, OriginalLayer]:
    spellings: dict[str, OriginalLayer] = {}
    if model.family in ORIGINAL_NAMES:
        for original, layer in original_layers(model.family, layers).items():
            held = OriginalLayer(tuple(f"{part}.{name}" for name in layer.parts), layer.halves_swapped)
            spellings[f"diffusion_model.{original}"] = spellings[f"lora_unet_{original.replace('.', '_')}"] = held
    for name in layers:
        prefixes = ("", f"{part}.", "diffusion_model.") if part == "transformer" else ("", f"{part}.")
        underscored = f"lora_{part}_{name.replace('.', '_')}"  # OneTrainer's spelling of transformers
        spellings |= dict.fromkeys((underscored, *(prefix + name for prefix in prefixes)), OriginalLayer((f"{part}.{name}",)))
    return spellings


def _text_spellings(model: DiffusionModel, part: str, layers: Iterable[str]) -> dict[str, OriginalLayer]:
    """Spell the layers of a text encoder; a name without a prefix counts where there is one encoder alone."""
    dotted, underscored = TEXT_PREFIXES[part]
    alone = "text_encoder_2" not in model.networks
    prefixes = [*(dotted[:1] if model.family in DIFFUSERS_NAMES_ALONE else dotted), *([""] if alone else [])]
    spellings: dict[str, OriginalLayer] = {}
    for name in layers:
        for variant in (name, f"text_model.{name}"):
            keys = [prefix + variant for prefix in prefixes]
            keys += [prefix + variant.replace(".", "_") for prefix in underscored]
            spellings |= dict.fromkeys(keys, OriginalLayer((f"{part}.{name}",)))
    return spellings
