"""A T5 that gives zeros for every prompt, as StableDiffusion3Pipeline does without T5.

A saved folder without T5 does not load with a plain `from_pretrained`, which asks for the component. This one has a few thousand weights.
"""

from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from transformers import T5Config, T5EncoderModel, T5TokenizerFast  # type: ignore[attr-defined]

WORDS = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]  # special tokens and the mark of a word's start


def with_null_t5(pipe: Any) -> StableDiffusion3Pipeline:
    """Return a pipeline of the same components, with a T5 that gives zeros (B, L, joint_attention_dim)."""
    tokenizer = T5TokenizerFast(vocab=WORDS, extra_ids=0)
    components = {**pipe.components, "text_encoder_3": null_t5(pipe.transformer.config.joint_attention_dim), "tokenizer_3": tokenizer}
    components["text_encoder_3"].to(pipe.device, pipe.transformer.dtype)
    return StableDiffusion3Pipeline(**components)


def null_t5(width: int) -> Any:
    """Return a T5 encoder of one layer, one head and one feature each, whose final norm multiplies by zero."""
    config = T5Config(vocab_size=len(WORDS), d_model=width, d_kv=1, d_ff=1, num_layers=1, num_heads=1, feed_forward_proj="gated-gelu")
    encoder = T5EncoderModel(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    return encoder
