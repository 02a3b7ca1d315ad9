"""What builds a pipeline around bare tensors: the configurations of its parts, its tokenizer and its noise schedule.

A checkpoint in one file is tensors alone. For released models this record comes with the package (families/configs); a checkpoint that
this project writes carries its own in the file's metadata, because its sizes may be any (pocket's are), and tensors do not show all of
them: the number of attention heads leaves no trace in a shape.
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
from erasure.loading.clip_tokenizer import clip_merges, clip_vocabulary, merges_of, tokenizer_of
from erasure.storage.run import write_json

SHIPPED = Path(__file__).parent.parent / "families" / "configs"
KNOWN = ("sd15", "sd21-base", "sd21", "sdxl")
CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
}
# what programs other than diffusers take for granted about a generation of Stable Diffusion, part by part
FIXED = {
    "unet": ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim", "attention_head_dim", "use_linear_projection"),
    "vae": ("block_out_channels", "layers_per_block", "latent_channels", "scaling_factor"),
    "text_encoder": ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "vocab_size", "max_position_embeddings"),
    "scheduler": ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps"),
}


class TokenizerFacts(BaseModel):
    """A CLIP tokenizer: CLIP's own vocabulary by name, another one written out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocabulary: Literal["clip"] | dict[str, int]
    merges: list[tuple[str, str]]
    pad_token: str
    model_max_length: int

    def build(self) -> CLIPTokenizer:
        options = {"pad_token": self.pad_token, "model_max_length": self.model_max_length}
        if self.vocabulary == "clip":
            return tokenizer_of(clip_vocabulary(), clip_merges(), **options)
        return tokenizer_of(self.vocabulary, self.merges, **options)


class Configs(BaseModel):
    """The configurations of one pipeline; those of the parts are diffusers' and transformers' own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pipeline: str  # its class in diffusers
    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    scheduler: dict[str, Any]
    tokenizer: TokenizerFacts
    text_encoder_2: dict[str, Any] | None = None
    tokenizer_2: TokenizerFacts | None = None

    def differences(self, other: "Configs") -> list[str]:
        """Names of the facts that another program would get wrong if it took this model for `other`."""
        found = []
        for part, names in FIXED.items():
            mine, theirs = getattr(self, part), getattr(other, part)
            found += [f"{part}.{name}" for name in names if mine.get(name) != theirs.get(name)]
        return found + (["tokenizer.vocabulary"] if self.tokenizer.vocabulary != other.tokenizer.vocabulary else [])

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """UNet, VAE and text encoder as a diffusers folder without weights, for as long as the context lasts."""
        with TemporaryDirectory(prefix="erasure-configs-") as name:
            place = Path(name)
            for part in CLASSES:
                (place / part).mkdir()
                write_json(place / part / "config.json", getattr(self, part))
            write_json(place / "model_index.json", {"_class_name": self.pipeline, **CLASSES})
            yield place


def shipped(name: str) -> Configs:
    """The configurations of a released model, one of `KNOWN`."""
    return Configs.model_validate_json((SHIPPED / f"{name}.json").read_bytes())


def configs_of(pipe: Any) -> Configs:
    """The configurations of a loaded Stable Diffusion pipeline, without anything about where it was loaded from.

    Raises:
        UserError: a tokenizer with words that were added to it (textual inversion).
    """
    vocabulary, merges = pipe.tokenizer.get_vocab(), merges_of(pipe.tokenizer)
    in_model = json.loads(pipe.tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    if added := sorted(vocabulary.keys() - in_model.keys()):
        raise UserError(f"the tokenizer has {len(added)} added words, such as {added[0]!r}; one file cannot hold them, use --as folder.")
    clip = vocabulary == clip_vocabulary() and merges == clip_merges()
    return Configs(
        pipeline="StableDiffusionPipeline",
        unet=_plain(pipe.unet.config),
        vae=_plain(pipe.vae.config),
        text_encoder=_plain(json.loads(pipe.text_encoder.config.to_json_string())),
        scheduler=_plain(pipe.scheduler.config),
        tokenizer=TokenizerFacts(
            vocabulary="clip" if clip else vocabulary,
            merges=[] if clip else merges,
            pad_token=pipe.tokenizer.pad_token,
            model_max_length=pipe.tokenizer.model_max_length,
        ),
    )


def _plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON reads it back (tuples as lists), without versions and paths."""
    kept: dict[str, Any] = json.loads(json.dumps(dict(config)))
    return {
        key: value for key, value in kept.items() if not key.startswith("_") and key not in ("transformers_version", "dtype", "torch_dtype")
    }
