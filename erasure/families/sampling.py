"""The steps of a sampling trajectory, and how edits change the way a pipeline samples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor


class TrajectoryStep(NamedTuple):
    """One step of a guided sampling trajectory."""

    x_t: Tensor  # (B, C, h, w) before the step
    t: int
    eps_cond: Tensor  # eps(x_t, c)
    eps_uncond: Tensor  # eps(x_t, the other side of the guidance)
    x_next: Tensor


class GuidanceEdit(NamedTuple):
    """What a guidance edit adds to sampling: a prompt to predict noise for at every step, and how to use that prediction."""

    prompt: str
    guide: Callable[..., Tensor]  # erasure.methods.base.Guided.guide


@dataclass
class SamplingOverrides:
    """How edits changed the way a pipeline samples."""

    guidance_edits: tuple[GuidanceEdit, ...] = ()
    one_step_timestep: int | None = None  # the timestep of a one-step generator


def sampling_of(pipe: Any) -> SamplingOverrides:
    """Return how the edits applied to a pipeline changed its sampling (set by erasure.edits)."""
    return getattr(pipe, "erasure_sampling", None) or SamplingOverrides()
