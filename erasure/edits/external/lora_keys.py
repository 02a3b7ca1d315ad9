"""The keys of LoRA files: which layer of the base a tensor belongs to, and what else a key may be."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from erasure.edits.external.lora_spellings import layers_of, spellings_of
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.original_names import OriginalLayer

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
    "XLabs' attention processors": r"processor\.(qkv|proj)_lora\d?\.",
    "Custom Diffusion": r"_custom_diffusion\.",
    "textual inversion": r"^(bundle_emb|emb_params|string_to_param)",
    "ControlNet": r"lora_controlnet",
}
SECOND_ENCODER = {"SDXL's second text encoder": re.compile(r"^(lora_te2_|text_encoder_2\.)")}  # where the base has one text encoder
OTHER_ADAPTER_PATTERNS = {name: re.compile(pattern) for name, pattern in OTHER_ADAPTERS.items()}
ALPHA_KEY = re.compile(r"(?P<layer>.+?)(?:[._]lora(?:_linear_layer)?)?\.alpha")
TEXT_LAYERS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}  # names of attention processors


@dataclass
class LoraLayer:
    """The tensors of a file that belong to one layer.

    Attributes:
        factors: by role: "up", "down" or "mid".
        fused: whether they were cut out of the factors of a matrix that holds other layers as well; then some columns of up may be zeros.
    """

    factors: dict[str, Tensor] = field(default_factory=dict)
    alpha: float | None = None
    fused: bool = False


def has_adapter_keys(model: DiffusionModel, keys: Iterable[str]) -> bool:
    """Return whether a file holds an adapter of any kind."""
    return any(FACTOR_KEY.fullmatch(key) or other_adapter_of(model, key) for key in keys)


def other_adapter_of(model: DiffusionModel, key: str) -> str | None:
    """Return what a key belongs to that is not a LoRA of this model's layers; None if there is nothing."""
    patterns = OTHER_ADAPTER_PATTERNS | ({} if "text_encoder_2" in model.networks else SECOND_ENCODER)
    return next((name for name, pattern in patterns.items() if pattern.search(key)), None)


def group_by_layer(model: DiffusionModel, source: str, tensors: Mapping[str, Tensor]) -> dict[str, LoraLayer]:
    """Group the tensors of a file by layers of the base; every tensor must belong to one.

    Raises:
        UserError: another kind of adapter, tensors of no layer of the base, a duplicated factor, or several adapters.
    """
    spellings, modules = spellings_of(model), layers_of(model)
    layers: dict[str, LoraLayer] = {}
    other_adapters: Counter[str] = Counter()
    unknown_keys: list[str] = []
    adapters: set[str | None] = set()
    for key, value in tensors.items():
        if adapter_type := other_adapter_of(model, key):
            other_adapters[adapter_type] += 1
            continue
        factor, alpha = FACTOR_KEY.fullmatch(key), ALPHA_KEY.fullmatch(key) if value.numel() == 1 else None
        match = factor or alpha
        held = next((spellings[name] for name in _spelling_variants(match["layer"]) if name in spellings), None) if match else None
        if held is None:
            unknown_keys.append(key)
        elif factor:
            adapters.add(factor["adapter"])
            role = FACTOR_ROLES.get(factor["role"], factor["role"])
            _add_factor(layers, source, key, role, held, _split(source, key, role, value, held, modules))
        else:
            for name in held.parts:
                layers.setdefault(name, LoraLayer()).alpha = float(value)
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


def _add_factor(layers: dict[str, LoraLayer], source: str, key: str, role: str, held: OriginalLayer, values: Sequence[Tensor]) -> None:
    for name, value in zip(held.parts, values, strict=True):
        layer = layers.setdefault(name, LoraLayer())
        if role in layer.factors:
            raise UserError(f"{source} has the {role} factor of {name} more than once, such as {key!r}.")
        layer.factors[role] = value
        layer.fused = len(values) > 1


def _split(source: str, key: str, role: str, value: Tensor, held: OriginalLayer, modules: Mapping[str, nn.Module]) -> Sequence[Tensor]:
    """Return the factor of every layer in a fused one: [B_q; B_k; B_v] A changes W_q by B_q A, so down (r, I) is shared, up (O, r) is cut.

    Raises:
        UserError: up has not as many rows as the layers together.
    """
    if role != "up":
        return [value] * len(held.parts)
    rows = [len(modules[name].weight) for name in held.parts]  # type: ignore[arg-type]  # of linear layers or convolutions
    if len(rows) == 1 and not held.halves_swapped:
        return [value]  # checked against its layer later
    if len(value) != sum(rows):
        raise UserError(f"{source}: {key!r} has {len(value)} rows, its layers have {sum(rows)} together; give its own base.")
    in_order = torch.cat(value.chunk(2)[::-1]) if held.halves_swapped else value
    return torch.split(in_order, rows)


def _spelling_variants(layer: str) -> Iterator[str]:
    """Yield the names that a layer's name in a file may stand for, the plain one first."""
    layer = layer.removeprefix("base_model.model.").replace(".processor.", ".")
    yield layer
    parent, dot, last = layer.rpartition(".")
    if last == "to_out":
        yield f"{layer}.0"
    if last in TEXT_LAYERS:
        yield f"{parent}{dot}{TEXT_LAYERS[last]}"
