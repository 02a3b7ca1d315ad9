"""Noise schedules: the forward process, what a prediction means, and the steps of deterministic sampling."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from erasure.errors import UserError


@dataclass(frozen=True)
class Sampler:
    """The steps of one trajectory."""

    times: Sequence[float]  # of the schedule, highest first; ints where the model was trained on discrete ones
    advance: Callable[[int, Tensor, Tensor], Tensor]  # (k, what the network predicts, x_t), both (B, C, h, w), to x at the next time


class Schedule(ABC):
    """What a denoiser was trained with. Times run from 0, the image, to `num_timesteps`, the noise.

    A prediction is what losses compare: noise on a diffusion model, velocity on a flow. What the network itself returns is called native.
    """

    predicts: Literal["noise", "velocity"]
    num_timesteps: int
    zero_terminal_snr: bool = False  # whether the noise at the last timestep does not depend on the text

    @abstractmethod
    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t (B, C, h, w) of the forward process at times t (B,)."""

    @abstractmethod
    def target(self, x_0: Tensor, noise: Tensor) -> Tensor:
        """Return the prediction (B, C, h, w) that is right for x_0 and noise: the noise itself, or the velocity noise - x_0."""

    @abstractmethod
    def estimate_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """Return the x_0 (B, C, h, w) that a prediction implies, the inverse of `add_noise`.

        Raises:
            UserError: a timestep has no signal, so that no x_0 follows from noise.
        """

    @abstractmethod
    def infer_noise(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the noise (B, C, h, w) with which `add_noise` turns x_0 into x_t at times t (B,) above 0."""

    @abstractmethod
    def to_prediction(self, native: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the prediction (B, C, h, w) that a native one implies."""

    @abstractmethod
    def to_native_change(self, change: Tensor, t: float) -> Tensor:
        """Return how a native prediction (B, C, h, w) changes where the prediction changes by `change`."""

    @abstractmethod
    def random_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return times (count,) over the whole schedule, uniform, on the CPU."""

    @abstractmethod
    def sampler(self, steps: int) -> Sampler:
        """Return the steps of a trajectory from unit noise to an image: DDIM on a diffusion model, Euler steps on a flow."""


class DiffusionSchedule(Schedule):
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (DDPM, arXiv:2006.11239, equation 4); the network predicts noise or v.

    Args:
        config: of the pipeline's scheduler, which may be of another class with the same betas.
        source: the name of the model, for messages.
    """

    predicts = "noise"

    def __init__(self, config: Mapping[str, Any], device: torch.device, source: str) -> None:
        prediction_type = config.get("prediction_type", "epsilon")  # the default of diffusers
        # clipping is for pixel-space models; older configs of latent models set it anyway, and diffusers ignores it too
        self._options = {"prediction_type": prediction_type, "clip_sample": False}
        self._config, self._source = config, source
        self.predicts_v = prediction_type == "v_prediction"
        self.scheduler = self._make_scheduler()
        self.num_timesteps = self.scheduler.config.num_train_timesteps
        self.alphas_cumprod: Tensor = self.scheduler.alphas_cumprod.to(device)
        self.zero_terminal_snr = bool(self.alphas_cumprod[-1] == 0)  # no signal at the last timestep (arXiv:2305.08891)

    def _make_scheduler(self) -> Any:
        return DDIMScheduler.from_config(self._config, **self._options)

    def _abar(self, t: Tensor) -> Tensor:
        return self.alphas_cumprod[t].reshape(-1, 1, 1, 1)

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self._abar(t).sqrt() * x_0 + (1 - self._abar(t)).sqrt() * noise

    def target(self, x_0: Tensor, noise: Tensor) -> Tensor:
        return noise

    def estimate_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        abar = self._abar(t)
        if self.zero_terminal_snr and (abar == 0).any():
            raise UserError(
                f"{self._source} has no signal at timestep {self.num_timesteps - 1} (zero terminal SNR); no image follows from noise there."
            )
        return (x_t - (1 - abar).sqrt() * prediction) / abar.sqrt()

    def infer_noise(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return (x_t - self._abar(t).sqrt() * x_0) / (1 - self._abar(t)).sqrt()

    def to_prediction(self, native: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if not self.predicts_v:
            return native
        # eps = sqrt(1 - abar) x_t + sqrt(abar) v (Salimans & Ho, arXiv:2202.00512, appendix D)
        return (1 - self._abar(t)).sqrt() * x_t + self._abar(t).sqrt() * native

    def to_native_change(self, change: Tensor, t: float) -> Tensor:
        return change / self.alphas_cumprod[int(t)].sqrt() if self.predicts_v else change

    def random_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randint(self.num_timesteps, (count,), generator=generator)

    def sampler(self, steps: int) -> Sampler:
        scheduler = self._make_scheduler()
        scheduler.set_timesteps(steps)
        times: list[float] = scheduler.timesteps.tolist()

        def advance(k: int, native: Tensor, x_t: Tensor) -> Tensor:
            # guided in the network's own space: at zero terminal SNR x_0 follows only from v, sqrt(abar) x_t - sqrt(1 - abar) v
            x_next: Tensor = scheduler.step(native, times[k], x_t).prev_sample
            return x_next

        return Sampler(times, advance)


class FlowSchedule(Schedule):
    """x_t = (1 - s) x_0 + s noise with s = t / num_timesteps; the network predicts v = noise - x_0 (Esser et al., arXiv:2403.03206).

    Args:
        config: of the pipeline's FlowMatchEulerDiscreteScheduler.
        equal_steps: whether the pipeline asks for s = 1, ..., 1/n before it shifts them, instead of the scheduler's own steps.
        shift_of: the shift mu of a number of steps, for schedulers with dynamic shifting.
    """

    predicts = "velocity"

    def __init__(self, config: Mapping[str, Any], *, equal_steps: bool = False, shift_of: Callable[[int], float] | None = None) -> None:
        self._config, self._equal_steps, self._shift_of = config, equal_steps, shift_of
        self.num_timesteps = config.get("num_train_timesteps", 1000)

    def _s(self, t: Tensor) -> Tensor:
        return (t.to(torch.float32) / self.num_timesteps).reshape(-1, 1, 1, 1)

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return (1 - self._s(t)) * x_0 + self._s(t) * noise

    def target(self, x_0: Tensor, noise: Tensor) -> Tensor:
        return noise - x_0

    def estimate_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        return x_t - self._s(t) * prediction

    def infer_noise(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return (x_t - (1 - self._s(t)) * x_0) / self._s(t)

    def to_prediction(self, native: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return native

    def to_native_change(self, change: Tensor, t: float) -> Tensor:
        return change

    def random_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.rand(count, generator=generator) * self.num_timesteps

    def sampler(self, steps: int) -> Sampler:
        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(self._config)
        shift = {"mu": self._shift_of(steps)} if self._shift_of and scheduler.config.use_dynamic_shifting else {}
        if self._equal_steps:
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), **shift)
        else:
            scheduler.set_timesteps(steps, **shift)
        sigmas: Tensor = scheduler.sigmas

        def advance(k: int, velocity: Tensor, x_t: Tensor) -> Tensor:
            return x_t + (sigmas[k + 1] - sigmas[k]) * velocity

        return Sampler(scheduler.timesteps.tolist(), advance)


def linear_shift(config: Mapping[str, Any], tokens: int) -> float:
    """Return the shift mu of an image of so many tokens, linear between two sizes that the scheduler's config gives (FLUX.1, SD 3.5)."""
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (high - low) / (many - few)
    return float(tokens * slope + (low - slope * few))
