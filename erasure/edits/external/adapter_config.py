"""The config of a PEFT adapter: the scale of its factors, and what would make it more than a plain LoRA."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from erasure.errors import UserError

NEUTRAL_INITIALIZATIONS = {True, False, None, "gaussian", "eva", "orthogonal"}  # initializations that leave the base unchanged


class AdapterConfig(BaseModel, frozen=True):
    """The fields of an adapter_config.json, or of a LoRA file's header, that set the scale or make the adapter more than a LoRA."""

    r: int
    lora_alpha: float
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    init_lora_weights: Any = True
    bias: Literal["none", "all", "lora_only"] = "none"
    # an adapter that sets one of these is not a plain LoRA
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
        """Return the settings under which the factors alone do not define the adapter."""
        unsupported = [] if self.init_lora_weights in NEUTRAL_INITIALIZATIONS else [f"init_lora_weights {self.init_lora_weights!r}"]
        unsupported += [] if self.bias == "none" else [f"bias {self.bias!r}"]
        plain_settings = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights", "bias"}
        return unsupported + [name for name in type(self).model_fields if name not in plain_settings and getattr(self, name)]

    def scale_of(self, names: Iterable[str], rank: int, source: str) -> float:
        """Return the scale of one layer: alpha / rank, or alpha / sqrt(rank) for rsLoRA.

        Args:
            names: all names of the layer; patterns may use any of them.
            rank: of the layer's factors.
            source: the adapter, for messages.

        Raises:
            UserError: the config gives another rank.
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
    """Return the value of the first key, as PEFT matches keys, that fits one of the names."""
    from peft.utils.other import get_pattern_key  # peft takes seconds to load

    for name in names:
        if (key := get_pattern_key(list(pattern), name)) in pattern:
            return pattern[key]
    return default


def parse_adapter_config(record: Any, source: str) -> AdapterConfig:
    """Validate the config of a plain LoRA.

    Raises:
        UserError: not a config, or one of an adapter that is more than a LoRA.
    """
    adapter_type = record.get("peft_type", "LORA") if isinstance(record, dict) else None
    if adapter_type not in ("LORA", None):
        raise UserError(
            f"{source} is an adapter of the type {adapter_type!r}; of PEFT's adapters, only plain LoRA can be read. "
            "Merge it and audit the folder."
        )
    try:
        config = AdapterConfig.model_validate(record)
    except ValidationError as error:
        detail = error.errors()[0]
        location = ".".join(map(str, detail["loc"])) or "it"
        raise UserError(f"the adapter config of {source} cannot be read: {location}: {detail['msg']}.") from error
    if unsupported := config.list_unsupported():
        raise UserError(f"{source} is not a plain LoRA: its config sets {', '.join(unsupported)}, which cannot be applied exactly.")
    if config.r < 1:
        raise UserError(f"the adapter config of {source} has r {config.r}; a rank is at least 1.")
    return config
