"""Several edits in one pipeline: the value of a parameter under them, and how the pipeline samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from erasure.edits import deltas
from erasure.edits.guidance import rebuild_guidance
from erasure.families.sampling import EDITS_ATTRIBUTE, SamplingOverrides

if TYPE_CHECKING:
    from erasure.edits.edit import Edit

AppliedEdit = tuple["Edit", float]  # an edit and its strength


@dataclass(frozen=True)
class EditStack:
    """The edits in a pipeline: all that they leave on it, beside changed weights, as its attribute `erasure_edits`.

    A pipeline without edits has no such attribute. Guidance edits also leave a hook on the UNet (erasure.edits.guidance).

    Attributes:
        edits: edits and strengths, in the order in which they were applied.
        originals: values of everything they change, by parameter name, in the dtype and on the device of the moment they were applied.
        network_ids: id() of the networks they went into, by part.
        unmoved: copies of some parameters that no edit moves, which show whether the pipeline was cast (erasure.edits.rounding).
        sampling: how they change the way the pipeline samples.
    """

    edits: tuple[AppliedEdit, ...] = ()
    originals: Mapping[str, Tensor] = field(default_factory=dict)
    network_ids: Mapping[str, int] = field(default_factory=dict)
    unmoved: Mapping[str, Tensor] = field(default_factory=dict)
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)


def stack_of(pipe: Any) -> EditStack:
    """Return the edits in a pipeline; an empty stack if it has none."""
    stack: EditStack = getattr(pipe, EDITS_ATTRIBUTE, None) or EditStack()
    return stack


def set_stack(pipe: Any, stack: EditStack) -> None:
    """Set the edits in a pipeline, or remove what says so if there are none."""
    if stack.edits:
        setattr(pipe, EDITS_ATTRIBUTE, stack)
    elif hasattr(pipe, EDITS_ATTRIBUTE):
        delattr(pipe, EDITS_ATTRIBUTE)


def build_sampling(edits: tuple[AppliedEdit, ...]) -> SamplingOverrides:
    """Return how a pipeline samples with these edits in it.

    Raises:
        UserError: a guidance edit whose method or fields do not exist.
    """
    guidance, one_step = [], None
    for edit, strength in edits:
        if edit.info.product == "guidance":
            guidance.append(rebuild_guidance(edit.info.method, edit.info.fields, edit.info.concepts, strength))
        elif edit.info.product == "one-step":
            one_step = int(edit.info.fields["init_timestep"])
    return SamplingOverrides(tuple(guidance), one_step)


def apply_stack(name: str, original: Tensor, edits: tuple[AppliedEdit, ...]) -> Tensor:
    """Return the value of one parameter under a stack of edits, in the shape of `original`, in fp32 or as one edit gives it.

    Each edit adds s (new - what it was made on); zeroed entries come last, so that two edits that zero the same entry leave zero.
    """
    own_edits = [(edit, s) for edit, s in edits if name in edit.moved_parameters()]
    if not own_edits:
        return original
    if len(own_edits) == 1 and own_edits[0][1] == 1.0:
        return deltas.apply_delta(own_edits[0][0].tensors, name, original)
    base = original.float()
    value, mask = base.clone(), torch.ones_like(base)
    for edit, s in own_edits:
        if deltas.is_zeroed(edit.tensors, name):
            mask *= 1 - s * (deltas.apply_delta(edit.tensors, name, torch.ones_like(base)) == 0)
            continue
        dependencies = tuple((other, 1.0) for other, _ in edits if other.digest() in edit.after) if edit.after else ()
        made_on = apply_stack(name, original, dependencies).float()
        value += s * (deltas.apply_delta(edit.tensors, name, made_on).float() - made_on)
    return value * mask
