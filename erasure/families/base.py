"""What the rest of the house knows of a diffusion model."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from erasure.config.choices import Attention, Precision, Region
from erasure.errors import NotFiniteError, UserError, unknown_value_error

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Cost:
    """Network passes counted per sample, so that they are the same on every machine."""

    unet_forwards: int = 0
    unet_backwards: int = 0
    text_forwards: int = 0
    sample_gradients: int = 0  # samples from which a trained parameter got a gradient

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(  # spelled out: a forecast adds up every step of a training
            self.unet_forwards + other.unet_forwards,
            self.unet_backwards + other.unet_backwards,
            self.text_forwards + other.text_forwards,
            self.sample_gradients + other.sample_gradients,
        )


class TrajectoryStep(NamedTuple):
    """One step of a guided walk."""

    x_t: Tensor  # (B, C, h, w) before the step
    t: int
    eps_cond: Tensor  # eps(x_t, c)
    eps_uncond: Tensor  # eps(x_t, the other side of the guidance)
    x_next: Tensor


class GuidanceEdit(NamedTuple):
    """What a guidance edit adds to sampling: a text whose prediction is asked for at every step, and what to make of it."""

    prompt: str
    guide: Callable[..., Tensor]  # erasure.methods.base.Guided.guide


@dataclass
class SamplingOverrides:
    """How edits changed the way a pipeline samples."""

    guidance_edits: tuple[GuidanceEdit, ...] = ()
    one_step_timestep: int | None = None  # the timestep of a one-step generator


class DiffusionModel(ABC):
    """A text-to-image pipeline as encode, predict, walk, decode and named regions of its parameters.

    Networks keep the dtype they were loaded in; computing happens under autocast in `compute`. The safety checker is always off
    here: it blackens images and would count as erasure.
    """

    family: str
    latent_shape: tuple[int, int, int]
    default_guidance: float  # the classifier-free guidance that suits the model
    zero_terminal_snr: bool  # whether the last timestep is all noise

    def __init__(self, pipe: Any, source: str, precision: Precision = "auto", attention: Attention = "auto") -> None:
        self.pipe, self.source = pipe, source
        pipe.erasure_owned = True  # `sample` asks guidance edits itself; a plain pipeline needs a hook for them
        self.device = pipe.device
        self.compute_dtype = resolve_precision(precision, self.device)
        self.cost = Cost()
        for module in (pipe.unet, pipe.vae, pipe.text_encoder):
            module.requires_grad_(False).eval()
        self.attention = attention
        self.set_attention(training=False)

    @property
    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """The editable networks by the prefix of their parameters: "unet", "text_encoder"."""

    @abstractmethod
    def encode(self, prompts: Sequence[str], prefix: Tensor | None = None) -> Tensor:
        """Text conditioning (B, L, D); captions longer than the context keep their end token.

        Args:
            prefix: soft tokens (k, E) or (B, k, E) in the space of the input embeddings, put before the words of every prompt.
        """

    @abstractmethod
    def token_embeddings(self) -> Tensor:
        """The input embeddings of all tokens (V, E)."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """How many tokens of a prompt the text encoder reads, start and end included."""

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text without start and end; not cut."""

    @abstractmethod
    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text that token ids stand for; read again it need not give the same ids."""

    @abstractmethod
    def last_token_index(self, text: str) -> int:
        """Position of the last token of `text` in its conditioning; 0, the start token, for an empty text."""

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w) of images (B, 3, H, W) in [0, 1]; the mean of the encoder's distribution."""

    @abstractmethod
    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (DDPM, arXiv:2006.11239, equation 4); t (B,)."""

    @abstractmethod
    def estimate_x0(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The x_0 that a noise prediction implies, the inverse of `noised`.

        Raises:
            UserError: a timestep without signal, where it implies none.
        """

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Predicted noise (B, C, h, w) in fp32, whatever the network itself predicts; t (B,)."""

    @abstractmethod
    def trajectory(
        self, x_T: Tensor, cond: Tensor, uncond: Tensor, steps: int, guidance: float, guidance_edits: Sequence[GuidanceEdit] = ()
    ) -> Iterator[TrajectoryStep]:
        """Guided deterministic DDIM from pure noise x_T (B, C, h, w); the last x_next is the image latent.

        Args:
            guides: of guidance edits; each may change the guided prediction.

        Raises:
            UserError: more steps than the schedule has.
            NotFinite: latents with NaN or Inf.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], fp32, from latents.

        Raises:
            NotFinite: images with NaN or Inf.
        """

    @abstractmethod
    def set_attention(self, training: bool) -> None:
        """Put the chosen attention kernel into the UNet; "auto" depends on whether gradients will flow through it."""

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.compute_dtype is torch.float32 else torch.autocast(self.device.type, dtype=self.compute_dtype)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Every editable parameter as "unet.<name>" or "text_encoder.<name>"."""
        return named_parameters(self.networks)

    def parameter_names(self, region: str) -> list[str]:
        """Parameter names of a region.

        Raises:
            UserError: an unknown region, or one that selects nothing in this model; the valid ones are listed.
        """
        if region not in get_args(Region):
            raise unknown_value_error("region", region, get_args(Region))
        names = [name for name in self.parameters() if in_region(name, region)]
        if not names:
            valid_regions = [
                other for other in get_args(Region) if any(in_region(parameter_name, other) for parameter_name in self.parameters())
            ]
            raise UserError(f"region {region!r} selects no parameter of {self.source}; it has {', '.join(valid_regions)}.")
        return names

    def linear_layers(self, region: str) -> dict[str, nn.Linear]:
        """The linear layers of a region, by the name of their weight."""
        parameter_names = set(self.parameter_names(region))
        layers = {}
        for prefix, network in self.networks.items():
            for name, layer in network.named_modules():
                weight = f"{prefix}.{canonical_name(name)}.weight"
                if isinstance(layer, nn.Linear) and weight in parameter_names:
                    layers[weight] = layer
        return layers

    def sample_noise(self, seeds: Sequence[int]) -> Tensor:
        """Unit noise (B, C, h, w), each row from its own CPU generator: the same on every device and in every batch."""
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
        """Image latents (B, C, h, w), one prompt and one seed each; guidance defaults to what suits the model.

        Args:
            prefix: soft tokens before every prompt, as in `encode`.

        Edits applied to the pipeline count: guidance edits are asked at every step, a one-step generator needs no second one.
        """
        overrides = sampling_of(self.pipe)
        if overrides.one_step_timestep is not None:
            return self.check_finite(
                self.sample_one_step(self.sample_noise(seeds), self.encode(prompts, prefix), overrides.one_step_timestep), "its latents"
            )
        cond, uncond = self.encode(prompts, prefix), self.encode([""]).expand(len(prompts), -1, -1)
        guidance = self.default_guidance if guidance is None else guidance
        for step in self.trajectory(self.sample_noise(seeds), cond, uncond, steps, guidance, overrides.guidance_edits):
            latents = step.x_next
        return latents

    def sample_one_step(self, noise: Tensor, cond: Tensor, t: int) -> Tensor:
        """x_0 read off a single prediction at timestep t, from sqrt(1 - abar_t) noise (SiD-LSG, arXiv:2406.01561)."""
        timesteps = torch.full((len(noise),), t, device=self.device)
        x_t = self.add_noise(torch.zeros_like(noise), noise, timesteps)
        return self.estimate_x0(x_t, self.predict(x_t, timesteps, cond), timesteps)

    def check_supports_guidance(self) -> None:
        """Whether guidance edits can steer this model.

        Raises:
            UserError: a schedule with zero terminal SNR, at whose end the predicted noise is x_t whatever the text.
        """
        if self.zero_terminal_snr:
            raise UserError(f"guidance edits do not work with {self.source}: at zero terminal SNR its noise does not depend on the text.")

    def check_finite(self, values: Tensor, label: str) -> Tensor:
        """The values, if they are all numbers.

        Raises:
            NotFinite: NaN or Inf among them, with the likely cause; as pixels they would be black, and black shows no concept.
        """
        if values.isfinite().all():
            return values
        networks = {**self.networks, "vae": self.pipe.vae}
        non_finite = (
            f"{prefix}.{name}" for prefix, network in networks.items() for name, p in network.named_parameters() if not p.isfinite().all()
        )
        if name := next(non_finite, ""):
            raise NotFiniteError(
                f"{self.source} gives NaN or Inf ({label}), because its weights hold them, such as {name}; copy or make it again."
            )
        precision = next(name for name, dtype in DTYPES.items() if dtype is self.compute_dtype)
        advice = (
            "compute with --dtype fp32, or bf16 on a GPU"
            if self.compute_dtype is not torch.float32
            else "its schedule may be another model's"
        )
        raise NotFiniteError(f"{self.source} gives NaN or Inf ({label}) in {precision}; {advice}.")

    def fingerprint(self) -> str:
        """Hash of every editable parameter, in fp16 so that fp16 and fp32 copies of one release agree."""
        return fingerprint(self.networks)


def sampling_of(pipe: Any) -> SamplingOverrides:
    """How the edits applied to a pipeline changed its sampling (erasure.edits sets it)."""
    return getattr(pipe, "erasure_sampling", None) or SamplingOverrides()


def in_region(name: str, region: str) -> bool:
    """Whether a parameter ("unet.down_blocks.0...") belongs to a region.

    noxattn leaves out the time embedding and the output head as the ESD authors' first code does (arXiv:2303.07345).
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


def canonical_name(name: str) -> str:
    """transformers 5.6 dropped the `text_model.` level of CLIPTextModel; edits use the flat name everywhere."""
    return name.removeprefix("text_model.")


def unwrap(module: nn.Module) -> nn.Module:
    """The network or layer inside the wrappers of torch.compile (`_orig_mod`) and peft (`base_layer`, `get_base_model`)."""
    while True:
        inner: Any = getattr(module, "_orig_mod", None)
        inner = getattr(module, "base_layer", None) if inner is None else inner
        if inner is None and hasattr(module, "get_base_model"):
            inner = module.get_base_model()  # type: ignore[operator]  # a method, of peft.PeftModel
        if inner is None:
            return module
        module = inner


def unwrapped_parameters(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by the names they have where nothing wraps the network or its layers.

    A loaded LoRA makes `to_q.base_layer.weight` of `to_q.weight` and puts its factors beside it, which are left out here; torch.compile
    adds `_orig_mod`.
    """
    network = unwrap(network)
    for name, p in network.named_parameters(recurse=False):
        yield prefix + name, p
    for name, child in network.named_children():
        yield from unwrapped_parameters(child, f"{prefix}{name}.")


def named_parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Every parameter of some networks as "<part>.<name>"; tied ones once."""
    parameters: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for prefix, network in modules.items():
        for name, p in unwrapped_parameters(network):
            if id(p) not in seen:
                parameters[f"{prefix}.{canonical_name(name)}"] = p
            seen.add(id(p))
    return parameters


def fingerprint(modules: Mapping[str, nn.Module], overrides: Mapping[str, Tensor] | None = None) -> str:
    """Hash of the parameters of networks, in fp16.

    Args:
        instead: values that count in place of those in the networks, by the names of `named_parameters`.
    """
    digest, overrides = hashlib.sha256(), overrides or {}
    for name, p in sorted(named_parameters(modules).items()):
        value = overrides.get(name, p)
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """auto: bf16 where the machine computes it natively, else fp32 on a CPU and fp16 on an older GPU."""
    if precision != "auto":
        if precision not in DTYPES:
            raise unknown_value_error("dtype", precision, ["auto", *DTYPES])
        return DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    native_bf16 = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native_bf16 else torch.float32
