"""The contract of a diffusion model: everything that methods, attacks and audits may ask of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from erasure.config.choices import Attention, Precision, Region
from erasure.errors import NotFiniteError, UserError, unknown_value_error
from erasure.families.conditioning import Conditioning, ConditioningPart
from erasure.families.cost import Cost
from erasure.families.parameters import find_linear_layers, fingerprint, named_parameters
from erasure.families.precision import resolve_precision
from erasure.families.sampling import GuidanceEdit, TrajectoryStep, sampling_of
from erasure.families.schedules import Schedule
from erasure.families.trajectory import explain_not_finite, follow_trajectory

# how a guidance scale acts: on two predictions, as an input of the network, or not at all, since it was distilled away
GuidanceKind = Literal["classifier-free", "embedded", "none"]


class DiffusionModel(ABC):
    """A text-to-image pipeline: encode prompts, predict, follow a trajectory, decode latents, name regions of parameters.

    Networks keep the dtype they were loaded in; computation runs under autocast in `compute_dtype`. The safety checker is always off:
    it blackens images, which would count as erasure. `cost` counts every pass through the UNet and the text encoder, where it happens.
    """

    family: str
    guidance_kind: GuidanceKind = "classifier-free"
    zeros_for_empty_prompt = False  # whether guidance starts from zeros, not from the empty prompt
    latent_shape: tuple[int, int, int]  # (C, h, w)
    images_at_once: int | None = None  # the user's choice, as is the resolution in pixels; see erasure.families.batching, .resolution
    resolution: int | None = None
    default_guidance: float  # the guidance that suits the model
    schedule: Schedule

    def __init__(self, pipe: Any, source: str, precision: Precision = "auto", attention: Attention = "auto") -> None:
        self.pipe, self.source = pipe, source
        self.device, self.cost = pipe._execution_device, Cost()  # diffusers' name for where an offloaded pipeline computes
        self.compute_dtype = resolve_precision(precision, self.device)
        for module in pipe.components.values():
            if isinstance(module, nn.Module):
                module.requires_grad_(False).eval()
        self.attention = attention
        self.set_attention(training=False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source}, {self.family}, {self.device}, {str(self.compute_dtype).removeprefix('torch.')})"

    @property
    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """The editable networks by the prefix of their parameters, which is their component's name, such as "unet"; the denoiser first."""

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts."""
        return next(iter(self.networks.values()))

    @abstractmethod
    def in_region(self, name: str, region: str) -> bool:
        """Return whether a parameter, by its full name, belongs to a region."""

    @abstractmethod
    def encode(self, prompts: Sequence[str], prefix: Tensor | None = None) -> Conditioning:
        """Return the conditioning of B prompts, fp32; prompts longer than the context keep their end token.

        Args:
            prefix: soft tokens (k, E) or (B, k, E) in the space of the input embeddings, put before the words of every prompt.
        """

    @abstractmethod
    def token_embeddings(self) -> Tensor:
        """Return the input embeddings of all tokens (V, E), fp32."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """How many tokens of a prompt the text encoder reads, start and end tokens included."""

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, without start and end tokens and without truncation."""

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids; tokenized again, it need not give the same ids."""
        return str(self.word_tokenizer.decode(list(token_ids)))

    @abstractmethod
    def last_token_indices(self, text: str) -> tuple[int, ...]:
        """Return the position of the last token of `text`, once for every text encoder; a start token's for an empty text."""

    @property
    @abstractmethod
    def token_spans(self) -> tuple[tuple[int, int], ...]:
        """The rows [start, stop) of a conditioning that each text encoder gives, in the order of `last_token_indices`."""

    @abstractmethod
    def closed_form_layers(self) -> dict[str, ConditioningPart]:
        """Return the weights (O, D) that read the conditioning itself, by parameter name, and which part of it each one reads."""

    @property
    def word_tokenizer(self) -> Any:
        """The tokenizer whose ids `tokenize` and `token_embeddings` speak of."""
        return self.pipe.tokenizer

    @property
    def special_token_ids(self) -> set[int]:
        """The ids that no text can hold: start, end and padding."""
        return set(self.word_tokenizer.all_special_ids)

    def encode_for_guidance(self, prompts: Sequence[str]) -> Conditioning:
        """Return the conditioning of B prompts; of an empty one what guidance starts from, which is zeros in some families."""
        cond = self.encode(prompts)
        return cond.zero_rows([not prompt for prompt in prompts]) if self.zeros_for_empty_prompt else cond

    @abstractmethod
    def predict_native(self, x_t: Tensor, t: Tensor, cond: Conditioning, guidance: float) -> Tensor:
        """Return what the network itself predicts (B, C, h, w), in fp32; `guidance` counts only where it is an input of the network."""

    def _from_vae(self, latents: Tensor) -> Tensor:
        """Return latents (B, C, h, w) as the denoiser knows them from those of the VAE."""
        config = self.pipe.vae.config
        return (latents - (getattr(config, "shift_factor", None) or 0.0)) * float(config.scaling_factor)

    def _to_vae(self, latents: Tensor) -> Tensor:
        """Invert `_from_vae`."""
        config = self.pipe.vae.config
        return latents / float(config.scaling_factor) + (getattr(config, "shift_factor", None) or 0.0)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Return latents (B, C, h, w) of images (B, 3, H, W) in [0, 1]: the mean of the encoder's distribution."""
        with self.autocast():
            latents: Tensor = self.pipe.vae.encode(images.to(self.device) * 2 - 1).latent_dist.mean
        return self._from_vae(latents.float())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1], fp32, from latents (B, C, h, w).

        Raises:
            NotFiniteError: Images hold NaN or Inf.
        """
        with self.autocast():
            images = self.pipe.vae.decode(self._to_vae(latents)).sample
        return (self.check_finite(images.float(), "its images") / 2 + 0.5).clamp(0, 1)

    @property
    def pixels_per_latent(self) -> int:
        """How many pixels one latent pixel is wide."""
        return int(2 ** (len(self.pipe.vae.config.block_out_channels) - 1))

    @property
    def num_timesteps(self) -> int:
        """How many timesteps the noise schedule has."""
        return self.schedule.num_timesteps

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t (B, C, h, w) of the forward process at times t (B,)."""
        return self.schedule.add_noise(x_0, noise, t)

    def random_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return times (count,) over the whole schedule, uniform, on the model's device."""
        return self.schedule.random_times(count, generator).to(self.device)

    def estimate_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """Return the x_0 (B, C, h, w) that a prediction implies; raises as `Schedule.estimate_x0`."""
        return self.schedule.estimate_x0(x_t, prediction, t)

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return the prediction (B, C, h, w) in fp32 for times t (B,), in the space that `schedule.predicts` names.

        Losses compare predictions there: a flow's noise would weight errors by (1 - s)^2 and ignore high noise; a UNet trained on v
        (arXiv:2202.00512) is asked for noise like any other. A network that reads the guidance scale gets the default one.
        """
        return self.schedule.to_prediction(self.predict_native(x_t, t, cond, self.default_guidance), x_t, t)

    @property
    def forwards_per_step(self) -> int:
        """How many passes of the denoiser a step of guided sampling takes per sample."""
        return 2 if self.guidance_kind == "classifier-free" else 1

    def trajectory(
        self,
        x_T: Tensor,
        cond: Conditioning,
        uncond: Conditioning,
        steps: int,
        guidance: float,
        guidance_edits: Sequence[GuidanceEdit] = (),
    ) -> Iterator[TrajectoryStep]:
        """Yield the steps of deterministic sampling from unit noise x_T (B, C, h, w); the last `x_next` is the image latent.

        Raises:
            UserError: More steps than the schedule has, or guidance edits on a model that does not support them.
            NotFiniteError: Latents hold NaN or Inf.
        """
        return follow_trajectory(self, x_T, cond, uncond, steps, guidance, guidance_edits)

    @abstractmethod
    def set_attention(self, training: bool) -> None:
        """Install the chosen attention kernel in the denoiser; "auto" depends on whether gradients will flow through it.

        Raises:
            UserError: An unknown kernel, or one that does not run on this device.
        """

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.compute_dtype is torch.float32 else torch.autocast(self.device.type, dtype=self.compute_dtype)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return every editable parameter as "unet.<name>" or "text_encoder.<name>"."""
        return named_parameters(self.networks)

    def parameter_names(self, region: str) -> list[str]:
        """Return the parameter names of a region.

        Raises:
            UserError: The region is unknown or selects nothing in this model; the valid ones are listed.
        """
        if region not in get_args(Region):
            raise unknown_value_error("region", region, get_args(Region))
        if not (names := [name for name in self.parameters() if self.in_region(name, region)]):
            valid_regions = [other for other in get_args(Region) if any(self.in_region(name, other) for name in self.parameters())]
            raise UserError(f"region {region!r} selects no parameter of {self.source}; it has {', '.join(valid_regions)}.")
        return names

    def linear_layers(self, region: str) -> dict[str, nn.Linear]:
        """Return the linear layers of a region by the name of their weight."""
        return find_linear_layers(self.networks, set(self.parameter_names(region)))

    def sample_noise(self, seeds: Sequence[int]) -> Tensor:
        """Return unit noise (B, C, h, w), each row from its own CPU generator: the same on every device and in every batch."""
        samples = [torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(samples).to(self.device)

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int = 25,
        guidance: float | None = None,
        prefix: Tensor | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Return image latents (B, C, h, w) for one prompt and one seed each.

        Edits applied to the pipeline count: guidance edits take part in every step, and a one-step generator takes a single step.
        Raises as `trajectory`.

        Args:
            guidance: classifier-free guidance; None means what suits the model.
            prefix: soft tokens before every prompt, as in `encode`.
            on_step: called after every step with its number, from 1; an exception in it ends the sampling.
        """
        overrides, noise, cond = sampling_of(self.pipe), self.sample_noise(seeds), self.encode(prompts, prefix)
        if overrides.one_step_timestep is not None:
            return self.check_finite(self.sample_one_step(noise, cond, overrides.one_step_timestep), "its latents")
        uncond = cond if self.forwards_per_step == 1 else self.encode_for_guidance([""]).expand(len(prompts))
        guidance = self.default_guidance if guidance is None else guidance
        for number, step in enumerate(self.trajectory(noise, cond, uncond, steps, guidance, overrides.guidance_edits), 1):
            latents = step.x_next
            if on_step is not None:
                on_step(number)
        return latents

    def sample_one_step(self, noise: Tensor, cond: Conditioning, t: int) -> Tensor:
        """Return x_0 (B, C, h, w) from one prediction at timestep t, starting at sqrt(1 - abar_t) noise (SiD-LSG, arXiv:2406.01561)."""
        timesteps = torch.full((len(noise),), t, device=self.device)
        x_t = self.add_noise(torch.zeros_like(noise), noise, timesteps)
        return self.estimate_x0(x_t, self.predict(x_t, timesteps, cond), timesteps)

    def check_finite(self, values: Tensor, label: str) -> Tensor:
        """Return the values if all are finite; NaN would decode to black pixels, and black shows no concept.

        Raises:
            NotFiniteError: Values hold NaN or Inf; the message names the likely cause.
        """
        if values.isfinite().all():
            return values
        raise NotFiniteError(explain_not_finite(self, label))

    @property
    def image_options(self) -> dict[str, Any]:
        """What the user chose that changes images, by the name of the option."""
        return ({"vae": "tiled"} if self.pipe.vae.use_tiling else {}) | ({"resolution": self.resolution} if self.resolution else {})

    def compute_key(self) -> dict[str, Any]:
        """Return how and where the model computes, for keys of caches."""
        return {"compute": str(self.compute_dtype), "device": self.device.type, **self.image_options}

    def fingerprint(self) -> str:
        """Return a hash of every editable parameter, in fp16 so that fp16 and fp32 copies of one release agree."""
        return fingerprint(self.networks)
