"""pocket-flow: pocket's VAE, tokenizer and text encoder around a rectified-flow transformer, as a StableDiffusion3Pipeline.

That pipeline calls two CLIP encoders and T5. Pocket's encoder takes the first place. The second is a null encoder, whose states and
projection are zeros for every prompt; T5 is absent.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

NULL_WIDTH = 8  # features of the null encoder


def build_pipeline(pocket: Path, transformer: Any, dtype: torch.dtype = torch.float32) -> StableDiffusion3Pipeline:
    """Return pocket-flow.

    Args:
        pocket: the folder of the pocket model.
        transformer: an SD3Transformer2DModel.
    """
    options = {"torch_dtype": dtype, "use_safetensors": True, "local_files_only": True}
    tokenizer = CLIPTokenizer.from_pretrained(pocket / "tokenizer")
    vae = AutoencoderKL.from_pretrained(pocket / "vae", **options)
    vae.register_to_config(shift_factor=0.0)  # the pipeline subtracts it, so None will not do
    return StableDiffusion3Pipeline(
        transformer=transformer.to(dtype),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=add_projection(CLIPTextModel.from_pretrained(pocket / "text_encoder", local_files_only=True)).to(dtype),
        tokenizer=tokenizer,
        text_encoder_2=null_text_encoder(len(tokenizer), tokenizer.model_max_length).to(dtype),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def add_projection(text_encoder: CLIPTextModel) -> Any:
    """Return the same encoder with an identity projection, so that its `text_embeds` are its pooled states."""
    config = CLIPTextConfig(**{**text_encoder.config.to_dict(), "projection_dim": text_encoder.config.hidden_size})
    projected = CLIPTextModelWithProjection(config)
    projected.text_model.load_state_dict(text_encoder.state_dict())
    nn.init.eye_(projected.text_projection.weight)
    return projected.eval()


def null_text_encoder(vocabulary: int, context: int) -> Any:
    """Return a CLIP encoder of one layer that gives zeros for every prompt."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=NULL_WIDTH,
        intermediate_size=NULL_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=context,
        projection_dim=NULL_WIDTH,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    encoder = CLIPTextModelWithProjection(config)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    return encoder.eval()
