"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet predicting noise or velocity."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from erasure.config.choices import family_of_width
from erasure.errors import UserError, unknown
from erasure.families.base import Attention, DiffusionModel, Guidance, Precision, Step
from erasure.loading.supported import check_pipe


class StableDiffusion(DiffusionModel):
    """A diffusers StableDiffusionPipeline, eps- or v-prediction."""

    family = "sd"

    def __init__(self, pipe: Any, source: str, precision: Precision = "auto", attention: Attention = "auto") -> None:
        check_pipe(pipe, source)
        schedule = pipe.scheduler.config
        prediction = schedule.get("prediction_type", "epsilon")  # as diffusers takes it where a config leaves it out
        self.velocity = prediction == "v_prediction"
        self.family = family_of(pipe)
        self.guidance = 4.0 if self.family == "pocket" else 7.5
        self.latent_shape = (pipe.unet.config.in_channels, *latent_size(pipe, source))
        # clipping is for models of pixels; older configs of latent models say it all the same, and diffusers ignores it too
        self.scheduler = DDIMScheduler.from_config(schedule, prediction_type=prediction, clip_sample=False)
        self.alphas = self.scheduler.alphas_cumprod.to(pipe.device)
        self.zero_snr = bool(self.alphas[-1] == 0)  # no signal at the last timestep (arXiv:2305.08891)
        super().__init__(pipe, source, precision, attention)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"unet": self.pipe.unet, "text_encoder": self.pipe.text_encoder}

    def encode(self, prompts: Sequence[str], prefix: Tensor | None = None) -> Tensor:
        encoder, soft = self.pipe.text_encoder, 0 if prefix is None else prefix.shape[-2]
        ids, attended = self._tokens(prompts, soft)
        # SD 1.x was trained without an attention mask on the padding; SD 2.x says in its config whether it wants one
        mask = attended if getattr(encoder.config, "use_attention_mask", False) else None
        self.cost.text_forwards += len(prompts)

        def put(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            inserted = prefix.to(out.dtype).expand(len(prompts), -1, -1)  # type: ignore[union-attr]  # only hooked with a prefix
            return torch.cat((out[:, :1], inserted, out[:, 1 + soft :]), 1)

        hook = encoder.get_input_embeddings().register_forward_hook(put) if soft else None
        try:
            with self.autocast():
                return encoder(ids, attention_mask=mask).last_hidden_state.float()
        finally:
            if hook:
                hook.remove()

    def _tokens(self, prompts: Sequence[str], soft: int) -> tuple[Tensor, Tensor]:
        """Token ids and mask (B, L) with `soft` places kept free after the start token; the end token is never cut off."""
        length = self.context - soft
        if length < 2:
            raise UserError(f"{soft} soft tokens leave no room for a prompt; the context has {self.context}.")
        texts = [self._converted(prompt) for prompt in prompts]
        batch = self.pipe.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids, mask = batch.input_ids, batch.attention_mask
        if soft:
            ids, mask = (torch.cat((part[:, :1], part[:, :1].expand(-1, soft), part[:, 1:]), 1) for part in (ids, mask))
        return ids.to(self.device), mask.to(self.device)

    @property
    def context(self) -> int:
        """Tokens that a prompt may have, start and end included; a tokenizer's config may leave it out."""
        return min(self.pipe.tokenizer.model_max_length, self.pipe.text_encoder.config.max_position_embeddings)

    def _converted(self, text: str) -> str:
        """A textual inversion of several vectors is one word in a prompt and several tokens to the text encoder."""
        converted: str = self.pipe.maybe_convert_prompt(text, self.pipe.tokenizer)
        return converted

    def vocabulary(self) -> Tensor:
        return self.pipe.text_encoder.get_input_embeddings().weight.detach().float()

    def tokens(self, text: str) -> list[int]:
        found: list[int] = self.pipe.tokenizer(self._converted(text), add_special_tokens=False, verbose=False).input_ids
        return found

    def spelled(self, tokens: Sequence[int]) -> str:
        text: str = self.pipe.tokenizer.decode(list(tokens))
        return text

    def last_token(self, text: str) -> int:
        return len(self.pipe.tokenizer(self._converted(text), max_length=self.context, truncation=True).input_ids) - 2

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        vae = self.pipe.vae
        with self.autocast():
            found = vae.encode(images.to(self.device) * 2 - 1).latent_dist.mean
        return found.float() * vae.config.scaling_factor

    def noised(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha = self.alphas[t].reshape(-1, 1, 1, 1)
        return alpha.sqrt() * x_0 + (1 - alpha).sqrt() * noise

    def denoised(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        alpha = self.alphas[t].reshape(-1, 1, 1, 1)
        if self.zero_snr and (alpha == 0).any():
            raise UserError(
                f"{self.source} has no signal at timestep {len(self.alphas) - 1} (zero terminal SNR); no image follows from noise there."
            )
        return (x_t - (1 - alpha).sqrt() * eps) / alpha.sqrt()

    def predict(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self._noise(self._answer(x_t, t, cond), x_t, t)

    def _answer(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """What the network itself predicts, noise or velocity (B, C, h, w), in fp32."""
        self.cost.unet_forwards += len(x_t)
        with self.autocast():
            out: Tensor = self.pipe.unet(x_t, t, encoder_hidden_states=cond).sample
        return out.float()

    def _noise(self, answer: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if not self.velocity:
            return answer
        # eps = sqrt(1 - abar) x_t + sqrt(abar) v (Salimans & Ho, arXiv:2202.00512, appendix D)
        alpha = self.alphas[t].reshape(-1, 1, 1, 1)
        return (1 - alpha).sqrt() * x_t + alpha.sqrt() * answer

    @torch.no_grad()
    def walk(
        self, x_T: Tensor, cond: Tensor, uncond: Tensor, steps: int, guidance: float, guides: Sequence[Guidance] = ()
    ) -> Iterator[Step]:
        if not 1 <= steps <= len(self.alphas):
            raise UserError(f"{self.source} can be sampled in 1 to {len(self.alphas):,} steps, got {steps:,}.")
        if guides:
            self.check_guidable()
        self.scheduler.set_timesteps(steps)
        both = torch.cat((uncond, cond, *(self.encode([g.text]).expand(len(cond), -1, -1) for g in guides)))
        memories: list[dict[str, Tensor]] = [{} for _ in guides]
        x_t = x_T * self.scheduler.init_noise_sigma
        for k, t in enumerate(self.scheduler.timesteps.tolist()):
            times = torch.full((len(both),), t, device=self.device)
            answers = self._answer(torch.cat([x_t] * (2 + len(guides))), times, both).chunk(2 + len(guides))
            eps_uncond, eps_cond, *asked = (self._noise(answer, x_t, times[: len(x_t)]) for answer in answers)
            # guided as the network predicts: at zero terminal SNR x_0 follows from velocity alone, x_0 = sqrt(abar) x_t - sqrt(1 - abar) v
            guided = answers[0] + guidance * (answers[1] - answers[0])
            for guide, eps_concept, memory in zip(guides, asked, memories, strict=True):
                push = guide.guide(eps_cond, eps_uncond, eps_concept, guidance, k / steps, memory)
                guided = guided + (push / self.alphas[t].sqrt() if self.velocity else push)
            x_next = self.finite(self.scheduler.step(guided, t, x_t).prev_sample, f"its latents after timestep {t}")
            yield Step(x_t, t, eps_cond, eps_uncond, x_next)
            x_t = x_next

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        with self.autocast():
            images = vae.decode(latents / vae.config.scaling_factor).sample
        return (self.finite(images.float(), "its images") / 2 + 0.5).clamp(0, 1)

    def use_attention(self, training: bool) -> None:
        unet, attention = self.pipe.unet, self.attention
        if attention == "auto":
            # on a CPU the backward pass of fused attention is slower than the plain one at small resolutions
            attention = "eager" if training and self.device.type == "cpu" else "sdpa"
        match attention:
            case "sdpa":
                unet.set_attn_processor(AttnProcessor2_0())
            case "eager":
                unet.set_attn_processor(AttnProcessor())
            case "xformers":
                if self.device.type != "cuda":
                    raise UserError(f"--attention xformers needs a CUDA device, this is {self.device.type!r}; use sdpa or eager.")
                unet.enable_xformers_memory_efficient_attention()
            case _:
                raise unknown("attention", attention, get_args(Attention))


def latent_size(pipe: Any, source: str) -> tuple[int, int]:
    """Height and width of a latent: what the UNet's config says, or else what the VAE's does."""
    size, pixels = pipe.unet.config.sample_size, pipe.vae.config.sample_size
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    if size is None and pixels is not None:
        size = [side // factor for side in pixels] if isinstance(pixels, list | tuple) else pixels // factor
    height, width = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
    if not all(isinstance(side, int) and side > 0 for side in (height, width)):
        raise UserError(
            f"{source} has the sample_size {size!r} in unet/config.json; it must be a number of latent places, or [height, width]."
        )
    return height, width


def family_of(pipe: Any) -> str:
    """The recipe family: "pocket", "sd1" or "sd2", told by the width of the text conditioning."""
    return family_of_width(pipe.unet.config.cross_attention_dim)
