"""The contract of a diffusion model: everything that methods, attacks and audits may ask of it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from erasure.config.choices import Attention, Precision, Region
from erasure.errors import NotFiniteError, UserError, unknown_value_error
from erasure.families.conditioning import Conditioning
from erasure.families.cost import Cost
from erasure.families.parameters import canonical_name, fingerprint, named_parameters
from erasure.families.precision import DTYPES, resolve_precision
from erasure.families.sampling import GuidanceEdit, TrajectoryStep, sampling_of


class DiffusionModel(ABC):
    """A text-to-image pipeline: encode prompts, predict noise, follow a trajectory, decode latents, name regions of parameters.

    Networks keep the dtype they were loaded in; computation runs under autocast in `compute_dtype`. The safety checker is always off:
    it blackens images, which would count as erasure. `cost` counts every pass through the UNet and the text encoder, where it happens.
    """

    family: str
    predicts: Literal["noise", "velocity"]  # what `predict` returns, and what losses compare
    latent_shape: tuple[int, int, int]  # (C, h, w)
    num_timesteps: int  # of the noise schedule the model was trained with; t is from 0 to num_timesteps - 1
    default_guidance: float  # the classifier-free guidance that suits the model
    zero_terminal_snr: bool  # whether the last timestep is pure noise

    def __init__(self, pipe: Any, source: str, precision: Precision = "auto", attention: Attention = "auto") -> None:
        self.pipe, self.source = pipe, source
        self.device = pipe.device
        self.compute_dtype = resolve_precision(precision, self.device)
        self.cost = Cost()
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
        """The editable networks by the prefix of their parameters, which is the name of their component, such as "unet"."""

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The network that predicts."""

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

    @abstractmethod
    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids; tokenized again, it need not give the same ids."""

    @abstractmethod
    def last_token_index(self, text: str) -> int:
        """Return the position of the last token of `text` in its conditioning; 0, the start token, for an empty text."""

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """Return latents (B, C, h, w) of images (B, 3, H, W) in [0, 1]: the mean of the encoder's distribution."""

    @abstractmethod
    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t (B, C, h, w) of the forward process at times t (B,)."""

    @abstractmethod
    def target(self, x_0: Tensor, noise: Tensor) -> Tensor:
        """Return what `predict` is trained toward (B, C, h, w): the noise itself, or its velocity noise - x_0."""

    @abstractmethod
    def random_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return times (count,) over the whole schedule, uniform, on the model's device."""

    @abstractmethod
    def estimate_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """Return the x_0 (B, C, h, w) that a prediction implies, the inverse of `add_noise`.

        Raises:
            UserError: A timestep has no signal, so that no x_0 follows from noise.
        """

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return the prediction (B, C, h, w) in fp32 for times t (B,), in the space that `predicts` names.

        Losses compare predictions there. A flow's noise would weight errors by (1 - s)^2 and ignore high noise, so its velocity counts;
        a UNet trained on v = sqrt(abar) eps - sqrt(1 - abar) x_0 (arXiv:2202.00512) is asked for noise like any other.
        """

    @abstractmethod
    def trajectory(
        self,
        x_T: Tensor,
        cond: Conditioning,
        uncond: Conditioning,
        steps: int,
        guidance: float,
        guidance_edits: Sequence[GuidanceEdit] = (),
    ) -> Iterator[TrajectoryStep]:
        """Yield the steps of guided deterministic sampling from unit noise x_T (B, C, h, w); the last `x_next` is the image latent.

        DDIM on a diffusion model, Euler steps on a flow.

        Args:
            guidance_edits: each may change the guided prediction.

        Raises:
            UserError: More steps than the schedule has, or guidance edits on a model that does not support them.
            NotFiniteError: Latents hold NaN or Inf.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1], fp32, from latents (B, C, h, w).

        Raises:
            NotFiniteError: Images hold NaN or Inf.
        """

    @abstractmethod
    def set_attention(self, training: bool) -> None:
        """Install the chosen attention kernel in the denoiser; "auto" depends on whether gradients will flow through it.

        Raises:
            UserError: An unknown kernel, or one that does not run on this device.
        """

    def _count_unet_pass(self, prediction: Tensor) -> Tensor:
        """Count a forward pass through the UNet by its result (B, ...), and the backward passes that will go through it.

        The hook runs once for every backward pass that reaches the prediction, whoever asks for it and whatever it is a gradient of.
        """
        samples = len(prediction)
        self.cost.unet_forwards += samples

        def count_backward(_: Tensor) -> None:
            self.cost.unet_backwards += samples

        if prediction.requires_grad:
            prediction.register_hook(count_backward)
        return prediction

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
        names = [name for name in self.parameters() if self.in_region(name, region)]
        if not names:
            valid_regions = [other for other in get_args(Region) if any(self.in_region(name, other) for name in self.parameters())]
            raise UserError(f"region {region!r} selects no parameter of {self.source}; it has {', '.join(valid_regions)}.")
        return names

    def linear_layers(self, region: str) -> dict[str, nn.Linear]:
        """Return the linear layers of a region by the name of their weight."""
        parameter_names = set(self.parameter_names(region))
        layers = {}
        for prefix, network in self.networks.items():
            for name, layer in network.named_modules():
                weight = f"{prefix}.{canonical_name(name)}.weight"
                if isinstance(layer, nn.Linear) and weight in parameter_names:
                    layers[weight] = layer
        return layers

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
    ) -> Tensor:
        """Return image latents (B, C, h, w) for one prompt and one seed each.

        Edits applied to the pipeline count: guidance edits take part in every step, and a one-step generator takes a single step.

        Args:
            guidance: classifier-free guidance; None means what suits the model.
            prefix: soft tokens before every prompt, as in `encode`.

        Raises:
            UserError: More steps than the schedule has.
            NotFiniteError: Latents hold NaN or Inf.
        """
        overrides = sampling_of(self.pipe)
        if overrides.one_step_timestep is not None:
            return self.check_finite(
                self.sample_one_step(self.sample_noise(seeds), self.encode(prompts, prefix), overrides.one_step_timestep), "its latents"
            )
        cond, uncond = self.encode(prompts, prefix), self.encode([""]).expand(len(prompts))
        guidance = self.default_guidance if guidance is None else guidance
        for step in self.trajectory(self.sample_noise(seeds), cond, uncond, steps, guidance, overrides.guidance_edits):
            latents = step.x_next
        return latents

    def sample_one_step(self, noise: Tensor, cond: Conditioning, t: int) -> Tensor:
        """Return x_0 (B, C, h, w) from one prediction at timestep t, starting at sqrt(1 - abar_t) noise (SiD-LSG, arXiv:2406.01561)."""
        timesteps = torch.full((len(noise),), t, device=self.device)
        x_t = self.add_noise(torch.zeros_like(noise), noise, timesteps)
        return self.estimate_x0(x_t, self.predict(x_t, timesteps, cond), timesteps)

    def check_step_count(self, steps: int) -> None:
        """Check that the schedule has so many steps.

        Raises:
            UserError: it has fewer, or none are asked for.
        """
        if not 1 <= steps <= self.num_timesteps:
            raise UserError(f"{self.source} can be sampled in 1 to {self.num_timesteps:,} steps, got {steps:,}.")

    def check_supports_guidance(self) -> None:
        """Check that guidance edits can steer this model.

        Raises:
            UserError: The schedule has zero terminal SNR, at whose end the predicted noise is x_t whatever the text.
        """
        if self.zero_terminal_snr:
            raise UserError(f"guidance edits do not work with {self.source}: at zero terminal SNR its noise does not depend on the text.")

    def check_finite(self, values: Tensor, label: str) -> Tensor:
        """Return the values if all are finite; NaN would decode to black pixels, and black shows no concept.

        Raises:
            NotFiniteError: Values hold NaN or Inf; the message names the likely cause.
        """
        if values.isfinite().all():
            return values
        networks = {**self.networks, "vae": self.pipe.vae}
        non_finite = (
            f"{prefix}.{name}" for prefix, network in networks.items() for name, p in network.named_parameters() if not p.isfinite().all()
        )
        if name := next(non_finite, ""):
            raise NotFiniteError(
                f"{self.source} gives NaN or Inf ({label}), because its weights hold them, such as {name}; download or convert it again."
            )
        precision = next(name for name, dtype in DTYPES.items() if dtype is self.compute_dtype)
        advice = (
            "compute with --dtype fp32, or bf16 on a GPU"
            if self.compute_dtype is not torch.float32
            else "its schedule may be another model's"
        )
        raise NotFiniteError(f"{self.source} gives NaN or Inf ({label}) in {precision}; {advice}.")

    def fingerprint(self) -> str:
        """Return a hash of every editable parameter, in fp16 so that fp16 and fp32 copies of one release agree."""
        return fingerprint(self.networks)


LoadedModel = Annotated[DiffusionModel, Doc("what erasure.load_model returns")]  # of functions that a model must outlive
