"""A tiny Stable Diffusion 3 pipeline from the real classes, random but fixed, with or without T5."""

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5TokenizerFast

from tests.tiny import tokenizer


def clip(width: int, layers: int = 2) -> CLIPTextModelWithProjection:
    tokens = tokenizer()
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=16,
            projection_dim=width,
            eos_token_id=tokens.eos_token_id,
            bos_token_id=tokens.bos_token_id,
            pad_token_id=tokens.eos_token_id,
        )
    )


def pipeline(t5: bool = True, shift: float = 3.0, seed: int = 0) -> StableDiffusion3Pipeline:
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=48,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        scaling_factor=1.5,
        shift_factor=0.06,
    )
    letters = [(chr(c), -2.0) for c in range(33, 127)]
    t5_tokenizer = T5TokenizerFast(vocab=[("<pad>", 0), ("</s>", 0), ("<unk>", 0), ("▁", -2), *letters], extra_ids=0)
    t5_config = T5Config(
        vocab_size=len(letters) + 4, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=vae,
        text_encoder=clip(16),
        tokenizer=tokenizer(),
        text_encoder_2=clip(32),
        tokenizer_2=tokenizer(),
        text_encoder_3=T5EncoderModel(t5_config) if t5 else None,
        tokenizer_3=t5_tokenizer if t5 else None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
