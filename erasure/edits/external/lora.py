"""LoRA files of other people: factors under the names of the base's own layers, at the scale at which they were trained.

W' = W + s B A (Hu et al., arXiv:2106.09685) with s = alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski, arXiv:2312.03732).
Whatever else a file holds is refused by name: a LoRA that is applied in part is another model.
"""

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft.utils.other import get_pattern_key
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from erasure.edits.deltas import DOWN, UP
from erasure.errors import UserError
from erasure.families.base import DiffusionModel, canonical_name

FACTOR_KEY = re.compile(r"(?P<layer>.+?)[._]lora(?:_linear_layer)?[._](?P<role>A|B|down|up|mid)(?:\.(?P<adapter>[\w-]+))?\.weight")
FACTOR_ROLES = {"A": "down", "B": "up"}
OTHER_ADAPTERS = {  # what a key may belong to besides a LoRA; the first match counts
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
NEUTRAL_INITIALIZATIONS = {True, False, None, "gaussian", "eva", "orthogonal"}  # initialisations that leave the base as it is


class IgnoredGateWarning(UserWarning):
    """An adapter is applied to every prompt that was made to be applied to some."""


class AdapterConfig(BaseModel, frozen=True):
    """What an adapter_config.json or the header of a LoRA file says about scale, and what would make it more than a LoRA."""

    r: int
    lora_alpha: float
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    init_lora_weights: Any = True
    bias: Literal["none", "all", "lora_only"] = "none"
    # what is not a plain LoRA when it is set
    use_dora: Any = None
    lora_bias: Any = None
    fan_in_fan_out: Any = None
    modules_to_save: Any = None
    trainable_token_indices: Any = None
    layer_replication: Any = None
    target_parameters: Any = None
    alora_invocation_tokens: Any = None
    use_qalora: Any = None
    use_bdlora: Any = None
    velora_config: Any = None
    monteclora_config: Any = None
    arrow_config: Any = None
    kasa_config: Any = None

    def list_unsupported(self) -> list[str]:
        """Settings under which the factors alone do not say what the adapter does."""
        unsupported = [] if self.init_lora_weights in NEUTRAL_INITIALIZATIONS else [f"init_lora_weights {self.init_lora_weights!r}"]
        unsupported += [] if self.bias == "none" else [f"bias {self.bias!r}"]
        plain_settings = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights", "bias"}
        return unsupported + [name for name in type(self).model_fields if name not in plain_settings and getattr(self, name)]

    def scale_of(self, names: Iterable[str], rank: int, source: str) -> float:
        """Of one layer, under any of the names that it goes by.

        Raises:
            UserError: factors of another rank than the config says.
        """
        configured_rank, alpha = (
            _match_pattern(pattern or {}, names, default)
            for pattern, default in ((self.rank_pattern, self.r), (self.alpha_pattern, self.lora_alpha))
        )
        if configured_rank != rank:
            raise UserError(
                f"{source}: {next(iter(names))} is of rank {rank}, and its config says {configured_rank:g}; they do not belong together."
            )
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _match_pattern(pattern: Mapping[str, float], names: Iterable[str], default: float) -> float:
    for name in names:
        if (key := get_pattern_key(list(pattern), name)) in pattern:
            return pattern[key]
    return default


def parse_adapter_config(record: Any, source: str) -> AdapterConfig:
    """The config of a plain LoRA.

    Raises:
        UserError: not a config, or one of something that is more than a LoRA.
    """
    adapter_type = record.get("peft_type", "LORA") if isinstance(record, dict) else None
    if adapter_type not in ("LORA", None):
        raise UserError(
            f"{source} is an adapter of the type {adapter_type!r}; of PEFT's adapters plain LoRA is read. Merge it and audit the folder."
        )
    try:
        config = AdapterConfig.model_validate(record)
    except ValidationError as error:
        detail = error.errors()[0]
        location = ".".join(map(str, detail["loc"])) or "it"
        raise UserError(f"the adapter config of {source} cannot be read: {location}: {detail['msg']}.") from error
    if unsupported := config.beyond():
        raise UserError(f"{source} is not a plain LoRA: its config sets {', '.join(unsupported)}, which cannot be applied exactly.")
    if config.r < 1:
        raise UserError(f"the adapter config of {source} has r {config.r}; a rank is at least 1.")
    return config


@dataclass
class LoraLayer:
    """What a file says about one layer."""

    factors: dict[str, Tensor] = field(default_factory=dict)  # by "up", "down", "mid"
    alpha: float | None = None


def has_adapter_keys(keys: Iterable[str]) -> bool:
    """Whether a file holds an adapter of any kind."""
    return any(FACTOR_KEY.fullmatch(key) or other_adapter_of(key) for key in keys)


def other_adapter_of(key: str) -> str | None:
    return next((name for name, pattern in OTHER_ADAPTER_PATTERNS.items() if pattern.search(key)), None)


def read_factors(
    model: DiffusionModel, source: str, tensors: Mapping[str, Tensor], configs: Mapping[str, AdapterConfig], header: Mapping[str, str]
) -> dict[str, Tensor]:
    """Scaled factors by the names of erasure.edits.deltas.

    Args:
        tensors: of the file, in the layout of diffusers (old or new), PEFT or kohya.
        configs: by "unet" and "text_encoder".
        header: metadata of the file.

    Raises:
        UserError: anything in the file that is not a factor of a layer of the base, or whose scale is not clear.
    """
    layers = _group_by_layer(model, source, tensors)
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
                [layer_name, f"text_model.{layer_name}"] if part == "text_encoder" else [layer_name], rank, source
            )
        else:
            scale = 1.0 if layer.alpha is None else layer.alpha / rank
        if not scale or not up.count_nonzero():
            continue  # as training begins, or switched off: it changes nothing
        scaled |= dict(zip((f"{name}.weight{UP}", f"{name}.weight{DOWN}"), _balance(up.float() * scale, down.float()), strict=True))
    return scaled


def layers_of(model: DiffusionModel) -> dict[str, nn.Module]:
    """Layers that can carry a LoRA, by "unet.<name>" and "text_encoder.<name>"."""
    return {
        f"{part}.{canonical_name(name)}": module
        for part, network in model.networks.items()
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def _group_by_layer(model: DiffusionModel, source: str, tensors: Mapping[str, Tensor]) -> dict[str, LoraLayer]:
    """The file by layers of the base; nothing is left over."""
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
            f"{source}: {recognized}{len(unknown_keys)} tensors belong to none of its layers, such as {unknown_keys[0]!r}; give its own base with --model."
        )
    if len(adapters) > 1:
        raise UserError(f"{source} holds several adapters ({', '.join(sorted(map(str, adapters)))}); save one of them alone.")
    return layers


def _spellings_of(names: Iterable[str]) -> dict[str, str]:
    """Every way to write a layer's name, without PEFT's prefix and with attention processors' names resolved, to its own name."""
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
    """Ways to read a layer's name as a file spells it, the plain one first."""
    layer = layer.removeprefix("base_model.model.").replace(".processor.", ".")
    yield layer
    parent, dot, last = layer.rpartition(".")
    if last == "to_out":
        yield f"{layer}.0"
    if last in TEXT_LAYERS:
        yield f"{parent}{dot}{TEXT_LAYERS[last]}"


def _factors_of_layer(source: str, name: str, layer: LoraLayer, module: nn.Module) -> tuple[Tensor, Tensor]:
    """Up (O, r) and down (r, I), for a convolution (O, r, 1, 1) and (r, I, k, k); the middle of Tucker's form goes into the down.

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
    """The same product with both factors of one size, by a power of two, so that a small scale does not sink below fp16's range."""
    magnitudes = [factor.abs().max().item() for factor in (up, down)]
    if not all(math.isfinite(magnitude) and magnitude > 0 for magnitude in magnitudes):
        return up, down
    shift = 2.0 ** round(math.log2(magnitudes[1] / magnitudes[0]) / 2)
    return up * shift, down / shift


def _warn_about_gates(source: str, layers: Mapping[str, LoraLayer], header: Mapping[str, str]) -> None:
    """SPM (Lyu et al., arXiv:2312.16145) ships rank-1 factors and the prompts they are for; a gate weighs them anew for every prompt."""
    if header.get("prompts") and all(len(layer.factors["down"]) == 1 for layer in layers.values() if "down" in layer.factors):
        warnings.warn(
            f"{source} looks like an SPM: rank 1, made for {header['prompts'][:80]!r}. SPM weakens its effect by a gate on prompts far "
            "from these; no gate is applied here, so that the audit may show more damage to other prompts than SPM does.",
            IgnoredGateWarning,
            stacklevel=2,
        )
