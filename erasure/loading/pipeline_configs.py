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
from erasure.loading.clip_tokenizer import build_clip_vocabulary, build_tokenizer, merges_of, read_clip_merges
from erasure.storage.run import write_json

CONFIG_FOLDER = Path(__file__).parent.parent / "families" / "configs"
RELEASED_MODELS = ("sd15", "sd21-base", "sd21", "sdxl")
COMPONENT_CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
}
# settings that programs other than diffusers assume for a generation of Stable Diffusion, by part
FIXED_SETTINGS = {
    "unet": ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim", "attention_head_dim", "use_linear_projection"),
    "vae": ("block_out_channels", "layers_per_block", "latent_channels", "scaling_factor"),
    "text_encoder": ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "vocab_size", "max_position_embeddings"),
    "scheduler": ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps"),
}


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


class PipelineConfigs(BaseModel):
    """The configurations of one pipeline; those of the networks are in the formats of diffusers and transformers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pipeline: str  # class name in diffusers
    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    scheduler: dict[str, Any]
    tokenizer: TokenizerConfig
    text_encoder_2: dict[str, Any] | None = None
    tokenizer_2: TokenizerConfig | None = None

    def list_differences(self, other: "PipelineConfigs") -> list[str]:
        """Return the names of the settings that another program would get wrong if it took this model for `other`."""
        differences = []
        for part, names in FIXED_SETTINGS.items():
            own_config, other_config = getattr(self, part), getattr(other, part)
            differences += [f"{part}.{name}" for name in names if own_config.get(name) != other_config.get(name)]
        return differences + (["tokenizer.vocabulary"] if self.tokenizer.vocabulary != other.tokenizer.vocabulary else [])

    @contextmanager
    def temporary_folder(self) -> Iterator[Path]:
        """Yield a temporary diffusers folder with the configurations of UNet, VAE and text encoder and no weights."""
        with TemporaryDirectory(prefix="erasure-configs-") as name:
            root = Path(name)
            for part in COMPONENT_CLASSES:
                (root / part).mkdir()
                write_json(root / part / "config.json", getattr(self, part))
            write_json(root / "model_index.json", {"_class_name": self.pipeline, **COMPONENT_CLASSES})
            yield root


def load_released_configs(name: str) -> PipelineConfigs:
    """Return the configurations of a released model, one of `RELEASED_MODELS`."""
    return PipelineConfigs.model_validate_json((CONFIG_FOLDER / f"{name}.json").read_bytes())


def configs_of(pipe: Any) -> PipelineConfigs:
    """Return the configurations of a loaded Stable Diffusion pipeline, without the path it was loaded from.

    Raises:
        UserError: a tokenizer with added words (textual inversion).
    """
    vocabulary, merges = pipe.tokenizer.get_vocab(), merges_of(pipe.tokenizer)
    model_vocabulary = json.loads(pipe.tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    if added_words := sorted(vocabulary.keys() - model_vocabulary.keys()):
        raise UserError(
            f"the tokenizer has {len(added_words)} added words, such as {added_words[0]!r}; one file cannot hold them, use --format folder."
        )
    is_clip = vocabulary == build_clip_vocabulary() and merges == read_clip_merges()
    return PipelineConfigs(
        pipeline="StableDiffusionPipeline",
        unet=_to_portable_config(pipe.unet.config),
        vae=_to_portable_config(pipe.vae.config),
        text_encoder=_to_portable_config(json.loads(pipe.text_encoder.config.to_json_string())),
        scheduler=_to_portable_config(pipe.scheduler.config),
        tokenizer=TokenizerConfig(
            vocabulary="clip" if is_clip else vocabulary,
            merges=[] if is_clip else merges,
            pad_token=pipe.tokenizer.pad_token,
            model_max_length=pipe.tokenizer.model_max_length,
        ),
    )


def _to_portable_config(config: Any) -> dict[str, Any]:
    """Return a configuration as JSON reads it back (tuples as lists), without versions and paths."""
    settings: dict[str, Any] = json.loads(json.dumps(dict(config)))
    return {
        key: value
        for key, value in settings.items()
        if not key.startswith("_") and key not in ("transformers_version", "dtype", "torch_dtype")
    }
