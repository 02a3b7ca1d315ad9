"""Stable Diffusion 1.x and 2.x: one CLIP text encoder and a UNet that predicts noise or velocity."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from erasure.config.choices import Attention, Precision
from erasure.errors import UserError, unknown_value_error
from erasure.families.base import DiffusionModel
from erasure.families.clip_text import insert_soft_tokens, tokenize_prompts
from erasure.families.conditioning import Conditioning, concatenate
from erasure.families.recognition import recognize_family
from erasure.families.sampling import GuidanceEdit, TrajectoryStep, own_network_call
from erasure.families.supported_models import PIPELINE_CLASS, check_pipeline, check_pipeline_class


class StableDiffusion(DiffusionModel):
    """A diffusers StableDiffusionPipeline with eps- or v-prediction.

    Raises:
        UserError: The pipeline is not a supported one, or its config has no usable latent size.
    """

    family = "sd"
    predicts = "noise"

    def __init__(self, pipe: Any, source: str, precision: Precision = "auto", attention: Attention = "auto") -> None:
        check_pipeline(pipe, source)
        scheduler_config = pipe.scheduler.config
        prediction_type = scheduler_config.get("prediction_type", "epsilon")  # the default of diffusers
        self.predicts_velocity = prediction_type == "v_prediction"
        self.family = family_of(pipe, source)
        self.default_guidance = 4.0 if self.family == "pocket" else 7.5
        self.latent_shape = (pipe.unet.config.in_channels, *latent_size(pipe, source))
        # clipping is for pixel-space models; older configs of latent models set it anyway, and diffusers ignores it too
        self.scheduler: Any = DDIMScheduler.from_config(scheduler_config, prediction_type=prediction_type, clip_sample=False)
        self.num_timesteps = self.scheduler.config.num_train_timesteps
        self.alphas_cumprod: Tensor = self.scheduler.alphas_cumprod.to(pipe.device)
        self.zero_terminal_snr = bool(self.alphas_cumprod[-1] == 0)  # no signal at the last timestep (arXiv:2305.08891)
        super().__init__(pipe, source, precision, attention)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"unet": self.pipe.unet, "text_encoder": self.pipe.text_encoder}

    @property
    def denoiser(self) -> nn.Module:
        unet: nn.Module = self.pipe.unet
        return unet

    def in_region(self, name: str, region: str) -> bool:
        """Return whether a parameter belongs to a region.

        noxattn leaves out the time embedding and the output head, as the ESD authors' first code does (arXiv:2303.07345).
        """
        if region == "text-encoder":
            return name.startswith(("text_encoder.encoder.layers.", "text_encoder.final_layer_norm."))
        if not name.startswith("unet."):
            return False
        match region:
            case "xattn":
                return ".attn2." in name
            case "xattn-kv":
                return ".attn2.to_k." in name or ".attn2.to_v." in name
            case "noxattn":
                return ".attn2." not in name and not name.startswith(("unet.time_embedding.", "unet.conv_out.", "unet.conv_norm_out."))
            case "selfattn":
                return ".attn1." in name
            case "ff-out":
                return ".ff.net.2." in name
            case _:
                return region == "full"

    def encode(self, prompts: Sequence[str], prefix: Tensor | None = None) -> Conditioning:
        encoder = self.pipe.text_encoder
        texts = [self._expand_embeddings(prompt) for prompt in prompts]
        ids, attention_mask = tokenize_prompts(self.pipe.tokenizer, texts, self.context_length, 0 if prefix is None else prefix.shape[-2])
        # SD 1.x was trained without an attention mask on the padding; the config of SD 2.x says whether it wants one
        mask = attention_mask.to(self.device) if getattr(encoder.config, "use_attention_mask", False) else None
        self.cost.text_forwards += len(prompts)
        with insert_soft_tokens(encoder, prefix), self.autocast():
            states: Tensor = encoder(ids.to(self.device), attention_mask=mask).last_hidden_state
        return Conditioning(states.float())

    @property
    def context_length(self) -> int:
        """How many tokens the text encoder reads, start and end included; the tokenizer's config may not give a limit."""
        length: int = min(self.pipe.tokenizer.model_max_length, self.pipe.text_encoder.config.max_position_embeddings)
        return length

    def _expand_embeddings(self, text: str) -> str:
        """Expand textual inversions: one of several vectors is one word in a prompt, but several tokens to the text encoder."""
        converted: str = self.pipe.maybe_convert_prompt(text, self.pipe.tokenizer)
        return converted

    def token_embeddings(self) -> Tensor:
        embeddings: Tensor = self.pipe.text_encoder.get_input_embeddings().weight
        return embeddings.detach().float()

    def tokenize(self, text: str) -> list[int]:
        token_ids: list[int] = self.pipe.tokenizer(self._expand_embeddings(text), add_special_tokens=False, verbose=False).input_ids
        return token_ids

    def detokenize(self, token_ids: Sequence[int]) -> str:
        text: str = self.pipe.tokenizer.decode(list(token_ids))
        return text

    def last_token_index(self, text: str) -> int:
        return len(self.pipe.tokenizer(self._expand_embeddings(text), max_length=self.context_length, truncation=True).input_ids) - 2

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        vae = self.pipe.vae
        with self.autocast():
            latents: Tensor = vae.encode(images.to(self.device) * 2 - 1).latent_dist.mean
        return latents.float() * float(vae.config.scaling_factor)

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (DDPM, arXiv:2006.11239, equation 4)."""
        alpha_bar = self.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise

    def target(self, x_0: Tensor, noise: Tensor) -> Tensor:
        return noise

    def random_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randint(self.num_timesteps, (count,), generator=generator).to(self.device)

    def estimate_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        alpha_bar = self.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        if self.zero_terminal_snr and (alpha_bar == 0).any():
            raise UserError(
                f"{self.source} has no signal at timestep {self.num_timesteps - 1} (zero terminal SNR); no image follows from noise there."
            )
        return (x_t - (1 - alpha_bar).sqrt() * prediction) / alpha_bar.sqrt()

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return self._to_noise(self._predict_native(x_t, t, cond), x_t, t)

    def _predict_native(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return what the network itself predicts, noise or velocity (B, C, h, w), in fp32."""
        with self.autocast(), own_network_call():
            prediction: Tensor = self.pipe.unet(x_t, t, encoder_hidden_states=cond.sequence).sample
        return self._count_unet_pass(prediction.float())

    def _to_noise(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the noise (B, C, h, w) that a native prediction implies."""
        if not self.predicts_velocity:
            return prediction
        # eps = sqrt(1 - abar) x_t + sqrt(abar) v (Salimans & Ho, arXiv:2202.00512, appendix D)
        alpha_bar = self.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        return (1 - alpha_bar).sqrt() * x_t + alpha_bar.sqrt() * prediction

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
        if guidance_edits:
            self.check_supports_guidance()
        self.scheduler.set_timesteps(steps)
        conds = concatenate([uncond, cond, *(self.encode([edit.prompt]).expand(len(cond)) for edit in guidance_edits)])
        states: list[dict[str, Tensor]] = [{} for _ in guidance_edits]
        x_t = x_T * self.scheduler.init_noise_sigma
        for k, t in enumerate(self.scheduler.timesteps.tolist()):
            timesteps = torch.full((len(conds),), t, device=self.device)
            predictions = self._predict_native(torch.cat([x_t] * (2 + len(guidance_edits))), timesteps, conds).chunk(
                2 + len(guidance_edits)
            )
            eps_uncond, eps_cond, *eps_concepts = (self._to_noise(prediction, x_t, timesteps[: len(x_t)]) for prediction in predictions)
            # guide in the network's own space: at zero terminal SNR x_0 follows only from velocity, sqrt(abar) x_t - sqrt(1 - abar) v
            guided = predictions[0] + guidance * (predictions[1] - predictions[0])
            for guidance_edit, eps_concept, state in zip(guidance_edits, eps_concepts, states, strict=True):
                correction = guidance_edit.guide(eps_cond, eps_uncond, eps_concept, guidance, k / steps, state)
                guided = guided + (correction / self.alphas_cumprod[t].sqrt() if self.predicts_velocity else correction)
            x_next = self.check_finite(self.scheduler.step(guided, t, x_t).prev_sample, f"its latents after timestep {t}")
            yield TrajectoryStep(x_t, t, eps_cond, eps_uncond, x_next)
            x_t = x_next

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        with self.autocast():
            images = vae.decode(latents / vae.config.scaling_factor).sample
        return (self.check_finite(images.float(), "its images") / 2 + 0.5).clamp(0, 1)

    def set_attention(self, training: bool) -> None:
        unet, attention = self.pipe.unet, self.attention
        if attention == "auto":
            # on a CPU the backward pass of fused attention is slower than that of plain attention at small resolutions
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
                raise unknown_value_error("attention", attention, get_args(Attention))


def latent_size(pipe: Any, source: str) -> tuple[int, int]:
    """Return height and width of a latent, from the UNet's config or else from the VAE's.

    Raises:
        UserError: Neither config gives a usable size.
    """
    sample_size, image_size = pipe.unet.config.sample_size, pipe.vae.config.sample_size
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    if sample_size is None and image_size is not None:
        sample_size = [side // factor for side in image_size] if isinstance(image_size, list | tuple) else image_size // factor
    height, width = sample_size if isinstance(sample_size, list | tuple) and len(sample_size) == 2 else (sample_size, sample_size)
    if not all(isinstance(side, int) and side > 0 for side in (height, width)):
        raise UserError(
            f"{source} has the sample_size {sample_size!r} in unet/config.json; it must be a size in latent pixels, or [height, width]."
        )
    return height, width


def family_of(pipe: Any, source: str) -> str:
    """Return the recipe family of a pipeline: "pocket", "sd1" or "sd2".

    Raises:
        UserError: another class of pipeline, or configs of none of these families.
    """
    class_names = [base.__name__ for base in type(pipe).__mro__]
    if PIPELINE_CLASS not in class_names:
        check_pipeline_class(class_names[0], source)
    return recognize_family(pipe.unet.config, pipe.text_encoder.config.to_dict(), source)
