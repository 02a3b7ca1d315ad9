"""The steps of a sampling trajectory, and how edits change the way a pipeline samples."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

EDITS_ATTRIBUTE = "erasure_edits"  # of a pipeline: an erasure.edits.stacking.EditStack
_own_call: ContextVar[bool] = ContextVar("own_network_call", default=False)


class TrajectoryStep(NamedTuple):
    """One step of a guided sampling trajectory."""

    x_t: Tensor  # (B, C, h, w) before the step
    t: float  # a time of the schedule; an int where the model was trained on discrete ones
    pred_cond: Tensor  # what DiffusionModel.predict gives at x_t for the prompt
    pred_uncond: Tensor | None  # and without a prompt, where classifier-free guidance asks for it
    x_next: Tensor


class GuidanceEdit(NamedTuple):
    """What a guidance edit adds to sampling: a prompt to predict noise for at every step, and how to use that prediction."""

    prompt: str
    guide: Callable[..., Tensor]  # erasure.methods.base.Guided.guide


@dataclass(frozen=True)
class SamplingOverrides:
    """How edits changed the way a pipeline samples."""

    guidance_edits: tuple[GuidanceEdit, ...] = ()
    one_step_timestep: int | None = None  # the timestep of a one-step generator


def sampling_of(pipe: Any) -> SamplingOverrides:
    """Return how the edits applied to a pipeline changed its sampling."""
    stack = getattr(pipe, EDITS_ATTRIBUTE, None)
    return SamplingOverrides() if stack is None else stack.sampling


@contextmanager
def own_network_call() -> Iterator[None]:
    """Mark calls of the UNet by a DiffusionModel: it uses guidance edits itself, so that their hook (erasure.edits.guidance) must not."""
    token = _own_call.set(True)
    try:
        yield
    finally:
        _own_call.reset(token)


def is_own_network_call() -> bool:
    """Return whether this runs within `own_network_call`, in the same thread."""
    return _own_call.get()
