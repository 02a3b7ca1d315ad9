"""FLUX.1: CLIP's pooled state and T5's tokens, and a transformer with double and single blocks that predicts the velocity of a flow."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from erasure.config.choices import Attention, Precision
from erasure.families.base import DiffusionModel
from erasure.families.clip_text import context_length_of, expand_embeddings, token_ids_of, tokenize_prompts
from erasure.families.conditioning import Conditioning, ConditioningPart
from erasure.families.cost import count_pass
from erasure.families.joint_attention import (
    TEXT_INPUTS,
    check_image_size,
    check_joint_attention,
    in_clip_region,
    in_transformer_region,
    merge_patches,
    split_patches,
)
from erasure.families.language_models import encode_t5, last_t5_token
from erasure.families.sampling import own_network_call
from erasure.families.schedules import FlowSchedule, linear_shift
from erasure.families.supported_models import check_pipeline
from erasure.families.unet import vae_factor


class Flux(DiffusionModel):
    """A diffusers FluxPipeline: dev, which reads the guidance scale as an input, or schnell, which needs no guidance.

    A prediction of dev is made at the default guidance: a guided field already, so that the difference between two prompts is one of
    guided fields. Soft tokens go into T5; CLIP gives one vector a prompt, and reads the words alone.

    Args:
        image_size: height and width in pixels; a multiple of 16.
        t5_length: how many tokens T5 reads; schnell was trained with 256.

    Raises:
        UserError: The pipeline is not a supported one, or the image size does not suit it.
    """

    family = "flux"
    schedule: FlowSchedule

    def __init__(
        self,
        pipe: Any,
        source: str,
        precision: Precision = "auto",
        attention: Attention = "auto",
        image_size: int = 1024,
        t5_length: int | None = None,
    ) -> None:
        check_pipeline(pipe, "FluxPipeline", source)
        self.guidance_kind = "embedded" if pipe.transformer.config.guidance_embeds else "none"
        self.default_guidance = 3.5 if self.guidance_kind == "embedded" else 1.0
        self.t5_length = t5_length or (512 if self.guidance_kind == "embedded" else 256)
        side = check_image_size(image_size, 2 * vae_factor(pipe))
        self.latent_shape = (pipe.transformer.config.in_channels // 4, 2 * side, 2 * side)
        config = pipe.scheduler.config
        self.schedule = FlowSchedule(config, equal_steps=True, shift_of=lambda steps: linear_shift(config, self.image_tokens))
        super().__init__(pipe, source, precision, attention)

    @property
    def image_tokens(self) -> int:
        """How many patches of 2 x 2 latent pixels an image has."""
        return self.latent_shape[1] * self.latent_shape[2] // 4

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {name: getattr(self.pipe, name) for name in ("transformer", "text_encoder")}

    def in_region(self, name: str, region: str) -> bool:
        return in_transformer_region(name, region) or in_clip_region(name, region)

    def closed_form_layers(self) -> dict[str, ConditioningPart]:
        return TEXT_INPUTS

    def encode(self, prompts: Sequence[str], prefix: Tensor | None = None) -> Conditioning:
        self.cost.text_forwards += len(prompts)
        clip, t5 = (
            [expand_embeddings(self.pipe, prompt, tokenizer) for prompt in prompts]
            for tokenizer in (self.pipe.tokenizer, self.pipe.tokenizer_2)
        )
        ids, _ = tokenize_prompts(self.pipe.tokenizer, clip, context_length_of(self.pipe.tokenizer, self.pipe.text_encoder))
        with self.autocast():
            pooled: Tensor = self.pipe.text_encoder(ids.to(self.device)).pooler_output
            states = encode_t5(self.pipe.text_encoder_2, self.pipe.tokenizer_2, t5, self.t5_length, prefix)
        return Conditioning(states.float(), pooled.float())

    @property
    def context_length(self) -> int:
        return self.t5_length

    @property
    def token_spans(self) -> tuple[tuple[int, int], ...]:
        return ((0, self.t5_length),)

    def last_token_indices(self, text: str) -> tuple[int, ...]:
        return (last_t5_token(self.pipe.tokenizer_2, text, self.t5_length),)

    def token_embeddings(self) -> Tensor:
        embeddings: Tensor = self.pipe.text_encoder_2.get_input_embeddings().weight
        return embeddings.detach().float()

    @property
    def word_tokenizer(self) -> Any:
        return self.pipe.tokenizer_2

    def tokenize(self, text: str) -> list[int]:
        return token_ids_of(self.word_tokenizer, text)

    def predict_native(self, x_t: Tensor, t: Tensor, cond: Conditioning, guidance: float) -> Tensor:
        height, width = (side // 2 for side in x_t.shape[-2:])
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        positions = torch.stack((torch.zeros_like(rows), rows, columns), -1).reshape(-1, 3).to(x_t)
        packed = split_patches(x_t).flatten(2).transpose(1, 2)  # (B, N, 4 C)
        scale = torch.full((len(x_t),), guidance, device=x_t.device) if self.guidance_kind == "embedded" else None
        with self.autocast(), own_network_call():
            velocity: Tensor = self.pipe.transformer(
                hidden_states=packed,
                timestep=t.to(torch.float32) / self.num_timesteps,
                guidance=scale,
                pooled_projections=cond.pooled,
                encoder_hidden_states=cond.sequence,
                txt_ids=positions.new_zeros(cond.sequence.shape[1], 3),
                img_ids=positions,
            ).sample
        return count_pass(self.cost, merge_patches(velocity.float().transpose(1, 2).unflatten(2, (height, width))))

    def set_attention(self, training: bool) -> None:
        check_joint_attention(self.attention, self.source)
