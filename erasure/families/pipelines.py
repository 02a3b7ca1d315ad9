"""The pipelines that can be edited, by their class in diffusers: what each consists of, and which class here opens it. No torch."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from erasure.families.base import DiffusionModel

CLIP_TOKENIZER = frozenset({"CLIPTokenizer", "CLIPTokenizerFast"})
T5_TOKENIZER = frozenset({"T5Tokenizer", "T5TokenizerFast"})
QWEN_TOKENIZER = frozenset({"Qwen2Tokenizer", "Qwen2TokenizerFast"})


@dataclass(frozen=True, kw_only=True)
class PipelineSpec:
    """What a supported pipeline consists of; components are named as in its model_index.json.

    Attributes:
        models: its models, for messages.
        family: its recipe family; "" where the configs of its networks tell.
        model_class: "module:class" of the DiffusionModel around it.
        denoiser: the component that predicts.
        networks: class of each network, in diffusers or transformers.
        tokenizers: allowed classes of each tokenizer.
        optional: components that may be absent, and are None then.
        schedule: which schedulers fit.
        gpu_dtype: of the weights on a GPU; fp16 overflows in some models.
    """

    models: str
    family: str
    model_class: str
    denoiser: Literal["unet", "transformer"]
    networks: Mapping[str, str]
    tokenizers: Mapping[str, frozenset[str]]
    optional: frozenset[str] = frozenset()
    schedule: Literal["diffusion", "flow"]
    gpu_dtype: Literal["float16", "bfloat16"] = "float16"

    @property
    def config_files(self) -> tuple[str, ...]:
        """Patterns of all files but the weights."""
        parts = (*self.networks, *self.tokenizers, "scheduler")
        return ("model_index.json", *(f"{part}/*.{end}" for part in parts for end in ("json", "txt", "model", "jinja")))

    def open(self, pipe: Any, source: str, **options: Any) -> "DiffusionModel":
        """Return the DiffusionModel around a pipeline of this class."""
        module, _, name = self.model_class.partition(":")
        model: DiffusionModel = getattr(importlib.import_module(module), name)(pipe, source, **options)
        return model


PIPELINES: dict[str, PipelineSpec] = {
    "StableDiffusionPipeline": PipelineSpec(
        models="Stable Diffusion 1.x and 2.x",
        family="",
        model_class="erasure.families.stable_diffusion:StableDiffusion",
        denoiser="unet",
        networks={"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel", "vae": "AutoencoderKL"},
        tokenizers={"tokenizer": CLIP_TOKENIZER},
        schedule="diffusion",
    ),
    "StableDiffusionXLPipeline": PipelineSpec(
        models="SDXL",
        family="sdxl",
        model_class="erasure.families.stable_diffusion_xl:StableDiffusionXL",
        denoiser="unet",
        networks={
            "unet": "UNet2DConditionModel",
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "vae": "AutoencoderKL",
        },
        tokenizers={"tokenizer": CLIP_TOKENIZER, "tokenizer_2": CLIP_TOKENIZER},
        schedule="diffusion",
    ),
    "StableDiffusion3Pipeline": PipelineSpec(
        models="Stable Diffusion 3.x",
        family="",
        model_class="erasure.families.stable_diffusion_3:StableDiffusion3",
        denoiser="transformer",
        networks={
            "transformer": "SD3Transformer2DModel",
            "text_encoder": "CLIPTextModelWithProjection",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "text_encoder_3": "T5EncoderModel",
            "vae": "AutoencoderKL",
        },
        tokenizers={"tokenizer": CLIP_TOKENIZER, "tokenizer_2": CLIP_TOKENIZER, "tokenizer_3": T5_TOKENIZER},
        optional=frozenset({"text_encoder_3", "tokenizer_3"}),
        schedule="flow",
    ),
    "FluxPipeline": PipelineSpec(
        models="FLUX.1",
        family="flux",
        model_class="erasure.families.flux:Flux",
        denoiser="transformer",
        networks={
            "transformer": "FluxTransformer2DModel",
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "T5EncoderModel",
            "vae": "AutoencoderKL",
        },
        tokenizers={"tokenizer": CLIP_TOKENIZER, "tokenizer_2": T5_TOKENIZER},
        schedule="flow",
        gpu_dtype="bfloat16",
    ),
    "Flux2KleinPipeline": PipelineSpec(
        models="FLUX.2-klein",
        family="flux2-klein",
        model_class="erasure.families.flux2_klein:Flux2Klein",
        denoiser="transformer",
        networks={"transformer": "Flux2Transformer2DModel", "text_encoder": "Qwen3ForCausalLM", "vae": "AutoencoderKLFlux2"},
        tokenizers={"tokenizer": QWEN_TOKENIZER},
        schedule="flow",
        gpu_dtype="bfloat16",
    ),
}


SINGLE_FILE_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")  # read and written as one file, beside folders
SINGLE_FILE_MODELS = "Stable Diffusion 1.x, 2.x and SDXL"
_MODELS = [spec.models for spec in PIPELINES.values()]
SUPPORTED_MODELS = f"supported are text-to-image pipelines of {', '.join(_MODELS[:-1])} and {_MODELS[-1]}"
FAMILY_PIPELINES = {  # the pipeline class of each recipe family
    "pocket": "StableDiffusionPipeline",
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "pocket-flow": "StableDiffusion3Pipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
    "flux2-klein": "Flux2KleinPipeline",
}
RELEASED_FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux", "flux2-klein")  # those that do not ship; no recipe for them was run
