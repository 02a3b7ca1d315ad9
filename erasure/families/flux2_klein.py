"""FLUX.2-klein: three layers of Qwen3, and a transformer that predicts the velocity of a flow over patches of normalized latents."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from erasure.config.choices import Attention, Precision
from erasure.families.base import DiffusionModel
from erasure.families.clip_text import token_ids_of
from erasure.families.conditioning import Conditioning, ConditioningPart
from erasure.families.cost import count_pass
from erasure.families.joint_attention import (
    CONTEXT_EMBEDDER,
    check_image_size,
    check_joint_attention,
    in_transformer_region,
    merge_patches,
    split_patches,
)
from erasure.families.language_models import chat_header_length, encode_qwen
from erasure.families.sampling import own_network_call
from erasure.families.schedules import FlowSchedule
from erasure.families.supported_models import check_pipeline
from erasure.families.unet import vae_factor


class Flux2Klein(DiffusionModel):
    """A diffusers Flux2KleinPipeline: base, with classifier-free guidance, or distilled, which needs none.

    The distilled model is sampled in 4 steps. Soft tokens go before the prompt, into Qwen3. Latents here are patches of 2 x 2 of the
    VAE's, normalized by its running mean and variance.

    Args:
        image_size: height and width in pixels; a multiple of 16.
        text_length: how many tokens Qwen3 reads, those of its chat template included.

    Raises:
        UserError: The pipeline is not a supported one, or the image size does not suit it.
    """

    family = "flux2-klein"
    schedule: FlowSchedule

    def __init__(
        self,
        pipe: Any,
        source: str,
        precision: Precision = "auto",
        attention: Attention = "auto",
        image_size: int = 1024,
        text_length: int = 512,
    ) -> None:
        check_pipeline(pipe, "Flux2KleinPipeline", source)
        self.guidance_kind = "none" if pipe.config.is_distilled else "classifier-free"
        self.default_guidance = 4.0 if self.guidance_kind == "classifier-free" else 1.0
        side = check_image_size(image_size, 2 * vae_factor(pipe))
        self.latent_shape, self.text_length = (pipe.transformer.config.in_channels, side, side), text_length
        self.schedule = FlowSchedule(pipe.scheduler.config, equal_steps=True, shift_of=lambda steps: klein_shift(self.image_tokens, steps))
        super().__init__(pipe, source, precision, attention)

    @property
    def image_tokens(self) -> int:
        """How many latent pixels an image has; each is a patch of the VAE's."""
        return self.latent_shape[1] * self.latent_shape[2]

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"transformer": self.pipe.transformer}

    def in_region(self, name: str, region: str) -> bool:
        return in_transformer_region(name, region)

    def closed_form_layers(self) -> dict[str, ConditioningPart]:
        return {CONTEXT_EMBEDDER: "sequence"}

    def encode(self, prompts: Sequence[str], prefix: Tensor | None = None) -> Conditioning:
        self.cost.text_forwards += len(prompts)
        with self.autocast():
            states = encode_qwen(self.pipe.text_encoder, self.pipe.tokenizer, prompts, self.text_length, prefix)
        return Conditioning(states.float())

    @property
    def context_length(self) -> int:
        return self.text_length

    @property
    def token_spans(self) -> tuple[tuple[int, int], ...]:
        return ((0, self.text_length),)

    def last_token_indices(self, text: str) -> tuple[int, ...]:
        return (min(chat_header_length(self.pipe.tokenizer) + len(self.tokenize(text)), self.text_length) - 1,)

    def token_embeddings(self) -> Tensor:
        embeddings: Tensor = self.pipe.text_encoder.get_input_embeddings().weight
        return embeddings.detach().float()

    def tokenize(self, text: str) -> list[int]:
        return token_ids_of(self.pipe.tokenizer, text)

    def predict_native(self, x_t: Tensor, t: Tensor, cond: Conditioning, guidance: float) -> Tensor:
        height, width = x_t.shape[-2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        zeros, words = torch.zeros_like(rows), torch.arange(cond.sequence.shape[1])
        image_ids = torch.stack((zeros, rows, columns, zeros), -1).reshape(1, -1, 4).expand(len(x_t), -1, -1).to(x_t.device)
        text_ids = torch.nn.functional.pad(words[:, None], (3, 0)).expand(len(x_t), -1, -1).to(x_t.device)
        with self.autocast(), own_network_call():
            velocity: Tensor = self.pipe.transformer(
                hidden_states=x_t.flatten(2).transpose(1, 2),
                timestep=t.to(torch.float32) / self.num_timesteps,
                guidance=None,
                encoder_hidden_states=cond.sequence,
                txt_ids=text_ids,
                img_ids=image_ids,
                return_dict=False,
            )[0]
        return count_pass(self.cost, velocity.float().transpose(1, 2).unflatten(2, (height, width)))

    @property
    def pixels_per_latent(self) -> int:
        return 2 * super().pixels_per_latent

    def _latent_statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the VAE's patches (1, C, 1, 1), of its batch norm."""
        vae = self.pipe.vae
        mean, variance = (values.to(self.device).float().reshape(1, -1, 1, 1) for values in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (variance + vae.config.batch_norm_eps).sqrt()

    def _from_vae(self, latents: Tensor) -> Tensor:
        mean, deviation = self._latent_statistics()
        return (split_patches(latents) - mean) / deviation

    def _to_vae(self, latents: Tensor) -> Tensor:
        mean, deviation = self._latent_statistics()
        return merge_patches(latents * deviation + mean)

    def set_attention(self, training: bool) -> None:
        check_joint_attention(self.attention, self.source)


def klein_shift(tokens: int, steps: int) -> float:
    """Return the shift mu of FLUX.2: an empirical fit, linear in the number of tokens at 10 and at 200 steps, and in steps between."""
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190
    return slope * steps + at_200 - 200 * slope
