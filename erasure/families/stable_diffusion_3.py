"""Stable Diffusion 3.x: two CLIP encoders and T5, and a joint-attention transformer that predicts the velocity of a rectified flow."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erasure.config.choices import Attention, Precision
from erasure.families.base import DiffusionModel
from erasure.families.clip_text import context_length_of, insert_soft_tokens, token_ids_of, tokenize_prompts
from erasure.families.conditioning import Conditioning, ConditioningPart
from erasure.families.cost import count_pass
from erasure.families.joint_attention import TEXT_INPUTS, check_joint_attention, in_clip_region, in_transformer_region
from erasure.families.language_models import encode_t5, last_t5_token
from erasure.families.recognition import is_pocket_text_encoder
from erasure.families.sampling import own_network_call
from erasure.families.schedules import FlowSchedule, linear_shift
from erasure.families.supported_models import check_pipeline


class StableDiffusion3(DiffusionModel):
    """A diffusers StableDiffusion3Pipeline, with or without T5 (Esser et al., arXiv:2403.03206).

    Soft tokens go into both CLIP encoders: an embedding of E values is the first encoder's, then the second's. T5 stays as it is.

    Args:
        t5_length: how many tokens T5 reads; without T5 so many rows of zeros take its place, as in diffusers. None means 256, the
            pipeline's default, and 1 on pocket-flow.

    Raises:
        UserError: The pipeline is not a supported one.
    """

    schedule: FlowSchedule

    def __init__(
        self, pipe: Any, source: str, precision: Precision = "auto", attention: Attention = "auto", t5_length: int | None = None
    ) -> None:
        check_pipeline(pipe, "StableDiffusion3Pipeline", source)
        is_pocket = is_pocket_text_encoder(pipe.text_encoder.config.to_dict())
        self.family, self.default_guidance = ("pocket-flow", 4.0) if is_pocket else ("sd3", 7.0)
        self.t5_length = t5_length or (1 if is_pocket else 256)
        config = pipe.transformer.config
        self.latent_shape = (config.in_channels, config.sample_size, config.sample_size)
        self.schedule = FlowSchedule(pipe.scheduler.config, shift_of=lambda steps: linear_shift(pipe.scheduler.config, self.image_tokens))
        super().__init__(pipe, source, precision, attention)

    @property
    def image_tokens(self) -> int:
        """How many patches an image has."""
        patch: int = self.pipe.transformer.config.patch_size
        return (self.latent_shape[1] // patch) * (self.latent_shape[2] // patch)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {name: getattr(self.pipe, name) for name in ("transformer", "text_encoder", "text_encoder_2")}

    def in_region(self, name: str, region: str) -> bool:
        if self.family == "pocket-flow" and name.startswith("text_encoder_2."):  # the null encoder
            return False
        return in_transformer_region(name, region) or in_clip_region(name, region)

    def closed_form_layers(self) -> dict[str, ConditioningPart]:
        return TEXT_INPUTS

    @property
    def _clip_encoders(self) -> tuple[tuple[Any, Any], ...]:
        """Both CLIP encoders with their tokenizers."""
        return (self.pipe.text_encoder, self.pipe.tokenizer), (self.pipe.text_encoder_2, self.pipe.tokenizer_2)

    def encode(self, prompts: Sequence[str], prefix: Tensor | None = None) -> Conditioning:
        self.cost.text_forwards += len(prompts)
        states, pooled = [], []
        widths = [encoder.config.hidden_size for encoder, _ in self._clip_encoders]
        soft_parts = [None, None] if prefix is None else prefix.split(widths, -1)
        for (encoder, tokenizer), part in zip(self._clip_encoders, soft_parts, strict=True):
            ids, _ = tokenize_prompts(tokenizer, prompts, self.context_length, 0 if part is None else part.shape[-2])
            with insert_soft_tokens(encoder.get_input_embeddings(), part), self.autocast():
                out = encoder(ids.to(self.device), output_hidden_states=True)
            states.append(out.hidden_states[-2].float())
            pooled.append(out.text_embeds.float())
        clip = torch.cat(states, -1)
        clip = F.pad(clip, (0, self.pipe.transformer.config.joint_attention_dim - clip.shape[-1]))
        return Conditioning(torch.cat((clip, self._encode_t5(prompts)), 1), torch.cat(pooled, -1))

    @torch.no_grad()
    def _encode_t5(self, prompts: Sequence[str]) -> Tensor:
        """Return T5's states (B, t5_length, D), or zeros without T5."""
        if self.pipe.text_encoder_3 is None:
            return torch.zeros(len(prompts), self.t5_length, self.pipe.transformer.config.joint_attention_dim, device=self.device)
        with self.autocast():
            return encode_t5(self.pipe.text_encoder_3, self.pipe.tokenizer_3, prompts, self.t5_length).float()

    @property
    def context_length(self) -> int:
        return min(context_length_of(self.pipe.tokenizer, encoder) for encoder, _ in self._clip_encoders)

    @property
    def _reads_t5(self) -> bool:
        return self.pipe.text_encoder_3 is not None and self.t5_length > 1

    @property
    def token_spans(self) -> tuple[tuple[int, int], ...]:
        clip = self.context_length
        return ((0, clip), (clip, clip + self.t5_length)) if self._reads_t5 else ((0, clip),)

    def last_token_indices(self, text: str) -> tuple[int, ...]:
        clip = min(len(self.tokenize(text)), self.context_length - 2)
        if not self._reads_t5:
            return (clip,)
        return clip, self.context_length + last_t5_token(self.pipe.tokenizer_3, text, self.t5_length)

    def token_embeddings(self) -> Tensor:
        return torch.cat([encoder.get_input_embeddings().weight.detach().float() for encoder, _ in self._clip_encoders], -1)

    def tokenize(self, text: str) -> list[int]:
        return token_ids_of(self.pipe.tokenizer, text)

    def predict_native(self, x_t: Tensor, t: Tensor, cond: Conditioning, guidance: float) -> Tensor:
        with self.autocast(), own_network_call():
            velocity: Tensor = self.pipe.transformer(
                hidden_states=x_t,
                timestep=t.to(torch.float32),
                encoder_hidden_states=cond.sequence,
                pooled_projections=cond.pooled,
            ).sample
        return count_pass(self.cost, velocity.float())

    def set_attention(self, training: bool) -> None:
        check_joint_attention(self.attention, self.source)
