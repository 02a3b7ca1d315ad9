"""Stable Diffusion 3.x: two CLIP encoders and T5, and a joint-attention transformer that predicts the velocity of a rectified flow."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch import Tensor, nn

from erasure.config.choices import Attention, Precision
from erasure.errors import UserError, unknown_value_error
from erasure.families.base import DiffusionModel
from erasure.families.clip_text import insert_soft_tokens, tokenize_prompts
from erasure.families.conditioning import Conditioning, concatenate
from erasure.families.sampling import GuidanceEdit, TrajectoryStep, own_network_call

TEXT_ATTENTION = (".add_q_proj.", ".add_k_proj.", ".add_v_proj.", ".to_add_out.", ".norm_added_q.", ".norm_added_k.")
IMAGE_ATTENTION = (".to_q.", ".to_k.", ".to_v.", ".to_out.", ".norm_q.", ".norm_k.")
TEXT_PROJECTIONS = ("transformer.context_embedder.", "transformer.time_text_embed.text_embedder.")
OUTPUT_HEAD = ("transformer.norm_out.", "transformer.proj_out.", "transformer.time_text_embed.timestep_embedder.")


class StableDiffusion3(DiffusionModel):
    """A diffusers StableDiffusion3Pipeline, with or without T5.

    x_t = (1 - s) x_0 + s eps with s = t / num_timesteps, and the network predicts v = eps - x_0 (rectified flow, Esser et al.,
    arXiv:2403.03206). Soft tokens go into both CLIP encoders: an embedding of E values is the first encoder's, then the second's.

    Args:
        t5_length: how many tokens T5 reads; without T5 so many rows of zeros take its place, as in diffusers.
    """

    predicts = "velocity"
    zero_terminal_snr = False  # pure noise at the start, but its velocity depends on the text

    def __init__(
        self,
        pipe: Any,
        source: str,
        precision: Precision = "auto",
        attention: Attention = "auto",
        family: str = "sd3",
        t5_length: int = 256,
    ) -> None:
        self.family, self.t5_length = family, t5_length
        self.default_guidance = 4.0 if family == "pocket-flow" else 7.0
        config = pipe.transformer.config
        self.latent_shape = (config.in_channels, config.sample_size, config.sample_size)
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
        self.num_timesteps = self.scheduler.config.num_train_timesteps
        super().__init__(pipe, source, precision, attention)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {name: getattr(self.pipe, name) for name in ("transformer", "text_encoder", "text_encoder_2")}

    @property
    def denoiser(self) -> nn.Module:
        transformer: nn.Module = self.pipe.transformer
        return transformer

    def in_region(self, name: str, region: str) -> bool:
        """Return whether a parameter belongs to a region.

        Text enters through the text side of joint attention, which has its own projections, so xattn is that side. attn2, of SD 3.5
        medium, is a second attention among image tokens only.
        """
        if region == "text-encoder":
            return name.startswith("text_encoder") and (".encoder.layers." in name or ".final_layer_norm." in name)
        if not name.startswith("transformer."):
            return False
        match region:
            case "xattn":
                return any(part in name for part in TEXT_ATTENTION)
            case "xattn-kv":
                return ".add_k_proj." in name or ".add_v_proj." in name
            case "text-proj":
                return name.startswith(TEXT_PROJECTIONS)
            case "noxattn":
                return not any(part in name for part in TEXT_ATTENTION) and not name.startswith((*TEXT_PROJECTIONS, *OUTPUT_HEAD))
            case "selfattn":
                return any(f"{attention}{part}" in name for attention in (".attn", ".attn2") for part in IMAGE_ATTENTION)
            case "ff-out":
                return ".ff.net.2." in name or ".ff_context.net.2." in name
            case _:
                return region == "full"

    # text -------------------------------------------------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[str], prefix: Tensor | None = None) -> Conditioning:
        soft_tokens = 0 if prefix is None else prefix.shape[-2]
        self.cost.text_forwards += len(prompts)
        states, pooled = [], []
        widths = [encoder.config.hidden_size for encoder in self._clip_encoders]
        parts = [None, None] if prefix is None else prefix.split(widths, -1)
        for encoder, tokenizer, part in zip(self._clip_encoders, (self.pipe.tokenizer, self.pipe.tokenizer_2), parts, strict=True):
            ids, _ = tokenize_prompts(tokenizer, prompts, self.context_length, soft_tokens)
            with insert_soft_tokens(encoder, part), self.autocast():
                out = encoder(ids.to(self.device), output_hidden_states=True)
            states.append(out.hidden_states[-2].float())
            pooled.append(out.text_embeds.float())
        clip = torch.cat(states, -1)
        clip = F.pad(clip, (0, self.pipe.transformer.config.joint_attention_dim - clip.shape[-1]))
        return Conditioning(torch.cat((clip, self._encode_t5(prompts)), 1), torch.cat(pooled, -1))

    def _encode_t5(self, prompts: Sequence[str]) -> Tensor:
        """Return T5's states (B, t5_length, D), or zeros without T5."""
        if self.pipe.text_encoder_3 is None:
            return torch.zeros(len(prompts), self.t5_length, self.pipe.transformer.config.joint_attention_dim, device=self.device)
        encoding = self.pipe.tokenizer_3(
            list(prompts), padding="max_length", max_length=self.t5_length, truncation=True, return_tensors="pt"
        )
        with self.autocast(), torch.no_grad():
            states: Tensor = self.pipe.text_encoder_3(encoding.input_ids.to(self.device))[0]
        return states.float()

    @property
    def _clip_encoders(self) -> tuple[Any, Any]:
        return self.pipe.text_encoder, self.pipe.text_encoder_2

    def token_embeddings(self) -> Tensor:
        return torch.cat([encoder.get_input_embeddings().weight.detach().float() for encoder in self._clip_encoders], -1)

    @property
    def context_length(self) -> int:
        lengths: list[int] = [encoder.config.max_position_embeddings for encoder in self._clip_encoders]
        lengths.append(self.pipe.tokenizer.model_max_length)
        return min(lengths)

    def tokenize(self, text: str) -> list[int]:
        token_ids: list[int] = self.pipe.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return token_ids

    def detokenize(self, token_ids: Sequence[int]) -> str:
        text: str = self.pipe.tokenizer.decode(list(token_ids))
        return text

    def last_token_index(self, text: str) -> int:
        return len(self.pipe.tokenizer(text, max_length=self.context_length, truncation=True).input_ids) - 2

    # flow -------------------------------------------------------------------------------------------------------------------------

    def _sigma(self, t: Tensor) -> Tensor:
        return (t.to(torch.float32) / self.num_timesteps).reshape(-1, 1, 1, 1)

    def random_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        return (torch.rand(count, generator=generator) * self.num_timesteps).to(self.device)

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t = (1 - s) x_0 + s noise."""
        s = self._sigma(t)
        return (1 - s) * x_0 + s * noise

    def target(self, x_0: Tensor, noise: Tensor) -> Tensor:
        return noise - x_0

    def estimate_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        return x_t - self._sigma(t) * prediction

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        with self.autocast(), own_network_call():
            velocity: Tensor = self.pipe.transformer(
                hidden_states=x_t,
                timestep=t.to(torch.float32),
                encoder_hidden_states=cond.sequence,
                pooled_projections=cond.pooled,
            ).sample
        return self._count_unet_pass(velocity.float())

    @torch.no_grad()
    def trajectory(
        self,
        x_T: Tensor,
        cond: Conditioning,
        uncond: Conditioning,
        steps: int,
        guidance: float,
        guidance_edits: Sequence[GuidanceEdit] = (),
    ) -> Iterator[TrajectoryStep]:
        self.check_step_count(steps)
        self.scheduler.set_timesteps(steps)
        sigmas, times = self.scheduler.sigmas.tolist(), self.scheduler.timesteps.tolist()
        count = 2 + len(guidance_edits)
        conds = concatenate([uncond, cond, *(self.encode([edit.prompt]).expand(len(cond)) for edit in guidance_edits)])
        states: list[dict[str, Tensor]] = [{} for _ in guidance_edits]
        x_t = x_T
        for k, t in enumerate(times):
            timesteps = torch.full((len(conds),), t, device=self.device)
            v_uncond, v_cond, *v_concepts = self.predict(torch.cat([x_t] * count), timesteps, conds).chunk(count)
            guided = v_uncond + guidance * (v_cond - v_uncond)
            for guidance_edit, v_concept, state in zip(guidance_edits, v_concepts, states, strict=True):
                guided = guided + guidance_edit.guide(v_cond, v_uncond, v_concept, guidance, k / steps, state)
            x_next = self.check_finite(x_t + (sigmas[k + 1] - sigmas[k]) * guided, f"its latents after time {t:.1f}")
            yield TrajectoryStep(x_t, t, v_cond, v_uncond, x_next)
            x_t = x_next

    # images -----------------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        config = self.pipe.vae.config
        with self.autocast():
            latents: Tensor = self.pipe.vae.encode(images.to(self.device) * 2 - 1).latent_dist.mean
        return (latents.float() - (config.shift_factor or 0.0)) * float(config.scaling_factor)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        config = self.pipe.vae.config
        with self.autocast():
            images = self.pipe.vae.decode(latents / config.scaling_factor + (config.shift_factor or 0.0)).sample
        return (self.check_finite(images.float(), "its images") / 2 + 0.5).clamp(0, 1)

    def set_attention(self, training: bool) -> None:
        match self.attention:
            case "auto" | "sdpa":
                self.pipe.transformer.set_attn_processor(JointAttnProcessor2_0())
            case "eager" | "xformers":
                raise UserError(f"--attention {self.attention} does not serve the joint attention of {self.source}; use sdpa.")
            case _:
                raise unknown_value_error("attention", self.attention, get_args(Attention))
