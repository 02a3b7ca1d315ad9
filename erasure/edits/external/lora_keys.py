"""The keys of LoRA files: which layer of the base a tensor belongs to, in the layouts of diffusers, PEFT and kohya."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.parameters import canonical_name

FACTOR_KEY = re.compile(r"(?P<layer>.+?)[._]lora(?:_linear_layer)?[._](?P<role>A|B|down|up|mid)(?:\.(?P<adapter>[\w-]+))?\.weight")
FACTOR_ROLES = {"A": "down", "B": "up"}
OTHER_ADAPTERS = {  # what a key may belong to instead of a LoRA; the first match counts
    "DoRA": r"dora_scale|lora_magnitude_vector",
    "LoHa": r"hada_[wt]",
    "LoKr": r"lokr_[wt]",
    "(IA)3": r"ia3_l|\.on_input$",
    "OFT": r"\b(boft|oft)_",
    "VeRA": r"vera_lambda",
    "GLoRA": r"\.[ab][12]\.weight$",
    "full differences": r"\.(diff|diff_b|w_norm|b_norm)$",
    "LoRA of a token embedding": r"lora_embedding_[AB]",
    "LoRA with a bias": r"lora_(B|up)\b.*\.bias$",
    "SDXL's second text encoder": r"^(lora_te2_|text_encoder_2\.)",
    "Custom Diffusion": r"_custom_diffusion\.",
    "textual inversion": r"^(bundle_emb|emb_params|string_to_param)",
    "ControlNet": r"lora_controlnet",
}
OTHER_ADAPTER_PATTERNS = {name: re.compile(pattern) for name, pattern in OTHER_ADAPTERS.items()}
ALPHA_KEY = re.compile(r"(?P<layer>.+?)(?:[._]lora(?:_linear_layer)?)?\.alpha")
TEXT_LAYERS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}  # names of attention processors


@dataclass
class LoraLayer:
    """The tensors of a file that belong to one layer."""

    factors: dict[str, Tensor] = field(default_factory=dict)  # by role: "up", "down" or "mid"
    alpha: float | None = None


def has_adapter_keys(keys: Iterable[str]) -> bool:
    """Return whether a file holds an adapter of any kind."""
    return any(FACTOR_KEY.fullmatch(key) or other_adapter_of(key) for key in keys)


def other_adapter_of(key: str) -> str | None:
    """Return the kind of adapter, other than LoRA, that a key belongs to; None if there is none."""
    return next((name for name, pattern in OTHER_ADAPTER_PATTERNS.items() if pattern.search(key)), None)


def layers_of(model: DiffusionModel) -> dict[str, nn.Module]:
    """Return the layers that a LoRA can change, by "unet.<name>" and "text_encoder.<name>"."""
    return {
        f"{part}.{canonical_name(name)}": module
        for part, network in model.networks.items()
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def group_by_layer(model: DiffusionModel, source: str, tensors: Mapping[str, Tensor]) -> dict[str, LoraLayer]:
    """Group the tensors of a file by layers of the base; every tensor must belong to one.

    Raises:
        UserError: another kind of adapter, tensors of no layer of the base, a duplicated factor, or several adapters.
    """
    spellings = _spellings_of(layers_of(model))
    layers: dict[str, LoraLayer] = {}
    other_adapters: Counter[str] = Counter()
    unknown_keys: list[str] = []
    adapters: set[str | None] = set()
    for key, value in tensors.items():
        if adapter_type := other_adapter_of(key):
            other_adapters[adapter_type] += 1
            continue
        factor, alpha = FACTOR_KEY.fullmatch(key), ALPHA_KEY.fullmatch(key) if value.numel() == 1 else None
        match = factor or alpha
        name = (
            next((spellings[spelling] for spelling in _spelling_variants(match["layer"]) if spelling in spellings), None) if match else None
        )
        if name is None:
            unknown_keys.append(key)
            continue
        layer = layers.setdefault(name, LoraLayer())
        if factor:
            adapters.add(factor["adapter"])
            role = FACTOR_ROLES.get(factor["role"], factor["role"])
            if role in layer.factors:
                raise UserError(f"{source} has the {role} factor of {name} more than once, such as {key!r}.")
            layer.factors[role] = value
        else:
            layer.alpha = float(value)
    if other_adapters:
        adapter_types = ", ".join(f"{adapter_type} ({count} tensors)" for adapter_type, count in other_adapters.items())
        raise UserError(
            f"{source} holds {adapter_types}, which cannot be applied exactly here. Merge it into a diffusers folder and audit that."
        )
    if unknown_keys:
        recognized = f"{len(layers)} layers are of {model.source}, " if layers else ""
        raise UserError(
            f"{source}: {recognized}{len(unknown_keys)} tensors belong to none of its layers, such as {unknown_keys[0]!r}; "
            "give its own base with --model."
        )
    if len(adapters) > 1:
        raise UserError(f"{source} holds several adapters ({', '.join(sorted(map(str, adapters)))}); save one of them alone.")
    return layers


def _spellings_of(names: Iterable[str]) -> dict[str, str]:
    """Map every spelling of a layer's name, without PEFT's prefix and with attention processors' names resolved, to the name."""
    spellings: dict[str, str] = {}
    for name in names:
        part, _, layer_name = name.partition(".")
        variants = (layer_name, f"text_model.{layer_name}") if part == "text_encoder" else (layer_name,)
        prefixes = ("lora_te_", "lora_te1_") if part == "text_encoder" else ("lora_unet_",)
        for variant in variants:
            spellings[variant] = spellings[f"{part}.{variant}"] = name
            spellings |= {prefix + variant.replace(".", "_"): name for prefix in prefixes}
    return spellings


def _spelling_variants(layer: str) -> Iterator[str]:
    """Yield the names that a layer's name in a file may stand for, the plain one first."""
    layer = layer.removeprefix("base_model.model.").replace(".processor.", ".")
    yield layer
    parent, dot, last = layer.rpartition(".")
    if last == "to_out":
        yield f"{layer}.0"
    if last in TEXT_LAYERS:
        yield f"{parent}{dot}{TEXT_LAYERS[last]}"
