"""Tiny pipelines of the families beside Stable Diffusion 1.x and 3, from the real classes, random but fixed."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tests import tiny_sd3
from tests.tiny import tokenizer

# as in Qwen's template, with thinking switched off
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


def vae(channels: int = 4, **options: Any) -> AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, "block_out_channels": (8, 8)}
    return AutoencoderKL(**blocks, layers_per_block=1, norm_num_groups=4, latent_channels=channels, sample_size=16, **options)


def clip_text_model(width: int) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**{**tiny_sd3.clip(width).config.to_dict(), "num_hidden_layers": 2}))


def sdxl(seed: int = 0, **unet_options: Any) -> StableDiffusionXLPipeline:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=48,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        norm_num_groups=4,
        **unet_options,
    )
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    return silent(
        StableDiffusionXLPipeline(
            vae=vae(scaling_factor=0.13025),
            text_encoder=clip_text_model(16),
            text_encoder_2=tiny_sd3.clip(32),
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer(),
            unet=unet,
            scheduler=scheduler,
            add_watermarker=False,
        )
    )


def flux(guidance_embeds: bool = True, seed: int = 0) -> FluxPipeline:
    torch.manual_seed(seed)
    sd3 = tiny_sd3.pipeline(seed=seed)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=guidance_embeds,
    )
    scheduler = (
        FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True) if guidance_embeds else FlowMatchEulerDiscreteScheduler()
    )
    return silent(
        FluxPipeline(
            scheduler=scheduler,
            vae=vae(scaling_factor=0.3611, shift_factor=0.1159),
            text_encoder=clip_text_model(32),
            tokenizer=tokenizer(),
            text_encoder_2=sd3.text_encoder_3,
            tokenizer_2=sd3.tokenizer_3,
            transformer=transformer,
        )
    )


def klein(distilled: bool = False, seed: int = 0) -> Flux2KleinPipeline:
    torch.manual_seed(seed)
    # byte-level vocabulary: every character of the template and of prompts is a token
    letters = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokens = Qwen2TokenizerFast(
        vocab={word: i for i, word in enumerate([*letters, *specials])}, merges=[], pad_token="<|endoftext|>", model_max_length=512
    )
    tokens.add_special_tokens({"additional_special_tokens": list(specials[1:])})
    tokens.chat_template = CHAT_TEMPLATE
    text_config = Qwen3Config(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=512,
    )
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    flux2_vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
    )
    flux2_vae.bn.running_mean.normal_()
    flux2_vae.bn.running_var.uniform_(0.5, 2.0)
    return silent(
        Flux2KleinPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=flux2_vae,
            text_encoder=Qwen3ForCausalLM(text_config),
            tokenizer=tokens,
            transformer=transformer,
            is_distilled=distilled,
        )
    )


def silent(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe
