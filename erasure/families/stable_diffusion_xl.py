"""Stable Diffusion XL: two CLIP text encoders, a pooled embedding and sizes, and a UNet that predicts noise or v."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from erasure.config.choices import Attention, Precision
from erasure.families.base import DiffusionModel
from erasure.families.clip_text import context_length_of, expand_embeddings, insert_soft_tokens, token_ids_of, tokenize_prompts
from erasure.families.conditioning import Conditioning, ConditioningPart
from erasure.families.cost import count_pass
from erasure.families.joint_attention import in_clip_region
from erasure.families.sampling import own_network_call
from erasure.families.schedules import DiffusionSchedule
from erasure.families.supported_models import check_pipeline
from erasure.families.unet import in_unet_region, latent_size, set_unet_attention, vae_factor


class StableDiffusionXL(DiffusionModel):
    """A diffusers StableDiffusionXLPipeline (Podell et al., arXiv:2307.01952).

    The UNet reads the second-to-last states of both encoders side by side, the projected state of the second, and the size of the image:
    here always the size that is generated, without a crop. Soft tokens go into both encoders: an embedding of E values is the first
    encoder's, then the second's.

    Raises:
        UserError: The pipeline is not a supported one, or its config has no usable latent size.
    """

    family = "sdxl"
    schedule: DiffusionSchedule

    def __init__(self, pipe: Any, source: str, precision: Precision = "auto", attention: Attention = "auto") -> None:
        check_pipeline(pipe, "StableDiffusionXLPipeline", source)
        self.default_guidance = 5.0
        self.latent_shape = (pipe.unet.config.in_channels, *latent_size(pipe, source))
        self.schedule = DiffusionSchedule(pipe.scheduler.config, pipe._execution_device, source)
        self.zeros_for_empty_prompt = bool(pipe.config.get("force_zeros_for_empty_prompt", True))
        super().__init__(pipe, source, precision, attention)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {name: getattr(self.pipe, name) for name in ("unet", "text_encoder", "text_encoder_2")}

    def in_region(self, name: str, region: str) -> bool:
        """Return whether a parameter belongs to a region; of the first text encoder, only layers that the UNet's input depends on."""
        last_layer = self.pipe.text_encoder.config.num_hidden_layers - 1
        if name.startswith(("text_encoder.final_layer_norm.", f"text_encoder.encoder.layers.{last_layer}.")):
            return False
        return in_unet_region(name, region) or in_clip_region(name, region)

    def closed_form_layers(self) -> dict[str, ConditioningPart]:
        return dict.fromkeys(self.parameter_names("xattn-kv"), "sequence")

    @property
    def _encoders(self) -> tuple[tuple[Any, Any], ...]:
        """Both text encoders with their tokenizers."""
        return (self.pipe.text_encoder, self.pipe.tokenizer), (self.pipe.text_encoder_2, self.pipe.tokenizer_2)

    def encode(self, prompts: Sequence[str], prefix: Tensor | None = None) -> Conditioning:
        self.cost.text_forwards += len(prompts)
        widths = [encoder.config.hidden_size for encoder, _ in self._encoders]
        soft_parts = [None, None] if prefix is None else prefix.split(widths, -1)
        states, pooled = [], None
        for (encoder, tokenizer), part in zip(self._encoders, soft_parts, strict=True):
            texts = [expand_embeddings(self.pipe, prompt, tokenizer) for prompt in prompts]
            ids, _ = tokenize_prompts(tokenizer, texts, self.context_length, 0 if part is None else part.shape[-2])
            with insert_soft_tokens(encoder.get_input_embeddings(), part), self.autocast():
                out = encoder(ids.to(self.device), output_hidden_states=True)
            states.append(out.hidden_states[-2].float())
            pooled = out[0].float()  # of the second encoder: its projected state
        return Conditioning(torch.cat(states, -1), pooled)

    @property
    def context_length(self) -> int:
        return context_length_of(self.pipe.tokenizer, self.pipe.text_encoder)

    @property
    def token_spans(self) -> tuple[tuple[int, int], ...]:
        return ((0, self.context_length),)

    def token_embeddings(self) -> Tensor:
        return torch.cat([encoder.get_input_embeddings().weight.detach().float() for encoder, _ in self._encoders], -1)

    def tokenize(self, text: str) -> list[int]:
        return token_ids_of(self.pipe.tokenizer, expand_embeddings(self.pipe, text, self.pipe.tokenizer))

    def last_token_indices(self, text: str) -> tuple[int, ...]:
        return (min(len(self.tokenize(text)), self.context_length - 2),)

    def size_ids(self, x_t: Tensor) -> Tensor:
        """Return original size, crop and target size (B, 6) of images with these latents (B, C, h, w)."""
        height, width = (side * vae_factor(self.pipe) for side in x_t.shape[-2:])
        return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=x_t.device).expand(len(x_t), -1)

    def predict_native(self, x_t: Tensor, t: Tensor, cond: Conditioning, guidance: float) -> Tensor:
        added = {"text_embeds": cond.pooled, "time_ids": self.size_ids(x_t)}
        with self.autocast(), own_network_call():
            prediction: Tensor = self.pipe.unet(x_t, t, encoder_hidden_states=cond.sequence, added_cond_kwargs=added).sample
        return count_pass(self.cost, prediction.float())

    def encode_images(self, images: Tensor) -> Tensor:
        with self._vae_without_fp16():
            return super().encode_images(images)

    def decode(self, latents: Tensor) -> Tensor:
        with self._vae_without_fp16():
            return super().decode(latents)

    @contextmanager
    def _vae_without_fp16(self) -> Iterator[None]:
        """Compute in fp32 in the block where the VAE's config says that fp16 overflows (`force_upcast`), as the pipeline does."""
        vae, compute_dtype, weights_dtype = self.pipe.vae, self.compute_dtype, self.pipe.vae.dtype
        if not (vae.config.force_upcast and torch.float16 in (compute_dtype, weights_dtype)):
            yield
            return
        self.compute_dtype = torch.float32
        vae.to(torch.float32)
        try:
            yield
        finally:
            self.compute_dtype = compute_dtype
            vae.to(weights_dtype)

    def set_attention(self, training: bool) -> None:
        set_unet_attention(self.pipe.unet, self.attention, training, self.device)
