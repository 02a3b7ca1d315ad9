"""Tiny pipelines from the real classes, built in a second, random but fixed."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def tokenizer(context: int = 16) -> CLIPTokenizer:
    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=context)


def pipeline(prediction: str = "epsilon", width: int = 16, seed: int = 0, size: int = 8, levels: int = 2) -> StableDiffusionPipeline:
    """A pipeline with latents of `size` x `size` and images 2 ** (levels - 1) times as large."""
    torch.manual_seed(seed)
    tokens = tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            eos_token_id=tokens.eos_token_id,
            bos_token_id=tokens.bos_token_id,
            pad_token_id=tokens.eos_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=size,
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )
    pipe = StableDiffusionPipeline(vae, text_encoder, tokens, unet, scheduler, None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_pipeline(path: Path, **options: object) -> Path:
    """A tiny pipeline on disk, as fp32 safetensors."""
    pipeline(**options).save_pretrained(path)  # type: ignore[arg-type]
    return path
