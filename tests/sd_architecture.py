"""Stable Diffusion's own depth, block types and tokenizer with random weights, at its full width or a tenth of it."""

import gzip
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from erasure.families.parameters import canonical_name
from erasure.loading.original_layout import places_of
from erasure.loading.pipeline_configs import PipelineConfigs

Generation = Literal["sd1", "sd2"]


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer from the byte-pair merges that open_clip carries; 49,408 tokens, context 77."""
    archive = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(archive.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = [*letters, *(c + "</w>" for c in letters), *("".join(m) for m in merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=merges, model_max_length=77)


def pipeline(generation: Generation, small: bool, latent: int = 8) -> StableDiffusionPipeline:
    """SD 1.5 (eps-prediction) or 2.1 (v-prediction), at full or a tenth of the width; latents are `latent` on a side."""
    torch.manual_seed(0)
    text_size = (80 if small else 768, 12) if generation == "sd1" else (96 if small else 1024, 23)
    attention_options: dict[str, Any] = {"attention_head_dim": 8}
    if generation == "sd2":
        attention_options = {"attention_head_dim": (1, 2, 4, 4) if small else (5, 10, 20, 20), "use_linear_projection": True}
    unet = UNet2DConditionModel(
        sample_size=latent,
        block_out_channels=(32, 64, 128, 128) if small else (320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention_dim=text_size[0],
        **attention_options,
    )
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=text_size[0],
        intermediate_size=4 * text_size[0],
        num_hidden_layers=text_size[1],
        num_attention_heads=4 if small else text_size[0] // 64,
        max_position_embeddings=77,
        hidden_act="quick_gelu" if generation == "sd1" else "gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 16) if small else (128, 256, 512, 512),
        layers_per_block=1 if small else 2,
        norm_num_groups=8 if small else 32,
        latent_channels=4,
    )
    schedule = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type="epsilon" if generation == "sd1" else "v_prediction",
    )
    pipe = StableDiffusionPipeline(vae, CLIPTextModel(config), tokenizer, unet, schedule, None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def modules_without_weights(configs: PipelineConfigs) -> dict[str, torch.nn.Module]:
    """UNet, VAE and text encoders of these configurations on the meta device: names and shapes only."""
    with init_empty_weights():
        parts = {
            "unet": UNet2DConditionModel.from_config(configs.unet),
            "vae": AutoencoderKL.from_config(configs.vae),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**configs.text_encoder)),
        }
        if configs.text_encoder_2:
            parts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**configs.text_encoder_2))
    return parts


def shapes_in_one_file(configs: PipelineConfigs) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a model in the original layout."""
    parts = modules_without_weights(configs)
    shapes = {part: {canonical_name(key): tuple(p.shape) for key, p in module.state_dict().items()} for part, module in parts.items()}
    return {name: place.shape(shapes[place.part]) for name, place in places_of(**parts).items()}
