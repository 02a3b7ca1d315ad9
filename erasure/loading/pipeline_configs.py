"""The configurations that build a pipeline around tensors: those of its networks, its tokenizer and its noise schedule.

A checkpoint in one file holds only tensors. For released models the configurations come with the package (families/configs). A checkpoint
that this project writes holds its own in the file's metadata, because it may have any sizes (pocket's are its own), and shapes do not show
all of them, such as the number of attention heads.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from transformers import CLIPTokenizer

from erasure.errors import UserError
from erasure.families.pipelines import PIPELINES
from erasure.loading.clip_tokenizer import build_clip_vocabulary, build_tokenizer, merges_of, read_clip_merges
from erasure.storage.run import write_json

CONFIG_FOLDER = Path(__file__).parent.parent / "families" / "configs"
RELEASED_MODELS = ("sd15", "sd21-base", "sd21", "sdxl")
TEXT_SETTINGS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "vocab_size", "max_position_embeddings")
# settings that programs other than diffusers assume for a generation of Stable Diffusion, by part
FIXED_SETTINGS = {
    "unet": (
        *("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim", "attention_head_dim", "use_linear_projection"),
        *("transformer_layers_per_block", "addition_time_embed_dim", "projection_class_embeddings_input_dim"),
    ),
    "vae": ("block_out_channels", "layers_per_block", "latent_channels", "scaling_factor"),
    "text_encoder": TEXT_SETTINGS,
    "text_encoder_2": (*TEXT_SETTINGS, "projection_dim"),
    "scheduler": ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps"),
}
UNSTATED_SETTINGS = {"transformer_layers_per_block": 1}  # values of settings that the configurations of releases leave out


class TokenizerConfig(BaseModel):
    """A CLIP tokenizer: "clip" for CLIP's own vocabulary, or the vocabulary and merges themselves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocabulary: Literal["clip"] | dict[str, int]
    merges: list[tuple[str, str]]
    pad_token: str
    model_max_length: int

    def build(self) -> CLIPTokenizer:
        """Build the tokenizer."""
        options = {"pad_token": self.pad_token, "model_max_length": self.model_max_length}
        if self.vocabulary == "clip":
            return build_tokenizer(build_clip_vocabulary(), read_clip_merges(), **options)
        return build_tokenizer(self.vocabulary, self.merges, **options)


class PipelineSettings(BaseModel):
    """Settings of an SDXL pipeline itself that change what it generates."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    force_zeros_for_empty_prompt: bool  # whether the unconditional prediction gets zeros in place of the empty prompt


class PipelineConfigs(BaseModel):
    """The configurations of one pipeline; those of the networks are in the formats of diffusers and transformers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pipeline: str  # class name in diffusers
    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    scheduler: dict[str, Any]  # with its class in diffusers as `_class_name`; DDIMScheduler where that is missing
    tokenizer: TokenizerConfig
    text_encoder_2: dict[str, Any] | None = None
    tokenizer_2: TokenizerConfig | None = None
    settings: PipelineSettings | None = None

    @property
    def networks(self) -> dict[str, dict[str, Any]]:
        """The configurations of the networks that its pipeline class has, by component.

        Raises:
            ValueError: one is missing.
        """
        return {part: self._component(part) for part in PIPELINES[self.pipeline].networks}

    @property
    def tokenizers(self) -> dict[str, TokenizerConfig]:
        """The tokenizers that its pipeline class has, by component.

        Raises:
            ValueError: one is missing.
        """
        return {part: self._component(part) for part in PIPELINES[self.pipeline].tokenizers}

    def _component(self, part: str) -> Any:
        if (config := getattr(self, part)) is None:
            raise ValueError(f"a {self.pipeline} needs a {part}")
        return config

    def list_differences(self, other: "PipelineConfigs") -> list[str]:
        """Return the names of the settings that another program would get wrong if it took this model for `other`."""
        differences = []
        for part in (*self.networks, "scheduler"):
            own_config, other_config = getattr(self, part), getattr(other, part)
            for name in FIXED_SETTINGS[part]:
                if own_config.get(name, UNSTATED_SETTINGS.get(name)) != other_config.get(name, UNSTATED_SETTINGS.get(name)):
                    differences.append(f"{part}.{name}")
        for part, tokenizer in self.tokenizers.items():
            if tokenizer.vocabulary != getattr(other, part).vocabulary:
                differences.append(f"{part}.vocabulary")
        return differences

    @contextmanager
    def temporary_folder(self) -> Iterator[Path]:
        """Yield a temporary diffusers folder with the configurations of the networks and no weights."""
        with TemporaryDirectory(prefix="erasure-configs-") as name:
            root = Path(name)
            classes = PIPELINES[self.pipeline].networks
            for part, config in self.networks.items():
                (root / part).mkdir()
                write_json(root / part / "config.json", config)
            libraries = {part: "transformers" if part.startswith("text_encoder") else "diffusers" for part in classes}
            index = {part: (libraries[part], class_name) for part, class_name in classes.items()}
            write_json(root / "model_index.json", {"_class_name": self.pipeline, **index})
            yield root


def load_released_configs(name: str) -> PipelineConfigs:
    """Return the configurations of a released model, one of `RELEASED_MODELS`."""
    return PipelineConfigs.model_validate_json((CONFIG_FOLDER / f"{name}.json").read_bytes())


def configs_of(pipe: Any) -> PipelineConfigs:
    """Return the configurations of a loaded Stable Diffusion or SDXL pipeline, without the path it was loaded from.

    Raises:
        UserError: a tokenizer with added words (textual inversion).
    """
    spec = PIPELINES[type(pipe).__name__]
    networks: dict[str, Any] = {}
    for part in spec.networks:
        config = getattr(pipe, part).config
        networks[part] = _to_portable_config(json.loads(config.to_json_string()) if part.startswith("text_encoder") else config)
    tokenizers: dict[str, Any] = {part: _tokenizer_config_of(getattr(pipe, part)) for part in spec.tokenizers}
    zeros = pipe.config.get("force_zeros_for_empty_prompt")
    return PipelineConfigs(
        pipeline=type(pipe).__name__,
        **networks,
        scheduler={"_class_name": type(pipe.scheduler).__name__, **_to_portable_config(pipe.scheduler.config)},
        **tokenizers,
        settings=None if zeros is None else PipelineSettings(force_zeros_for_empty_prompt=zeros),
    )


def _tokenizer_config_of(tokenizer: Any) -> TokenizerConfig:
    """Return the configuration of a loaded CLIP tokenizer. Raises as `configs_of`."""
    vocabulary, merges = tokenizer.get_vocab(), merges_of(tokenizer)
    model_vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    if added_words := sorted(vocabulary.keys() - model_vocabulary.keys()):
        raise UserError(
            f"the tokenizer has {len(added_words)} added words, such as {added_words[0]!r}; one file cannot hold them, use --format folder."
        )
    is_clip = vocabulary == build_clip_vocabulary() and merges == read_clip_merges()
    return TokenizerConfig(
        vocabulary="clip" if is_clip else vocabulary,
        merges=[] if is_clip else merges,
        pad_token=tokenizer.pad_token,
        model_max_length=tokenizer.model_max_length,
    )


def _to_portable_config(config: Any) -> dict[str, Any]:
    """Return a configuration as JSON reads it back (tuples as lists), without versions and paths."""
    settings: dict[str, Any] = json.loads(json.dumps(dict(config)))
    return {
        key: value
        for key, value in settings.items()
        if not key.startswith("_") and key not in ("transformers_version", "dtype", "torch_dtype")
    }
