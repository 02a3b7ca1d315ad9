"""Several edits in one pipeline: what a parameter becomes under them, and how the pipeline samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from erasure.edits import deltas as forms
from erasure.edits.guidance import rebuild_guidance
from erasure.families.base import SamplingOverrides

if TYPE_CHECKING:
    from erasure.edits.edit import Edit

AppliedEdit = tuple["Edit", float]  # an edit and its strength


@dataclass(frozen=True)
class EditStack:
    """The edits in a pipeline, and the kept originals of everything they touch, in the dtype and on the device of that moment."""

    edits: tuple[AppliedEdit, ...] = ()
    originals: Mapping[str, Tensor] = field(default_factory=dict)
    network_ids: Mapping[str, int] = field(default_factory=dict)  # which objects the networks were, by part
    unmoved: Mapping[str, Tensor] = field(default_factory=dict)  # parameters no edit moves, as they were (erasure.edits.rounding)


def stack_of(pipe: Any) -> EditStack:
    stack: EditStack = getattr(pipe, "erasure_stack", None) or EditStack()
    return stack


def build_sampling(edits: tuple[AppliedEdit, ...]) -> SamplingOverrides:
    """How a pipeline samples with these edits in it.

    Raises:
        UserError: a guidance edit whose method or fields do not exist.
    """
    guidance, one_step = [], None
    for edit, strength in edits:
        if edit.info.product == "guidance":
            guidance.append(rebuild_guidance(edit.info.method, edit.info.fields, edit.info.concepts, strength))
        elif edit.info.product == "one-step":
            one_step = int(edit.info.fields["start"])
    return SamplingOverrides(tuple(guidance), one_step)


def apply_stack(name: str, original: Tensor, edits: tuple[AppliedEdit, ...]) -> Tensor:
    """One parameter under a stack: each edit adds s (new - what it was made on); zeroed entries come last, so that two edits that zero
    the same entry leave zero."""
    own_edits = [(edit, s) for edit, s in edits if name in edit.moved_parameters()]
    if not own_edits:
        return original
    if len(own_edits) == 1 and own_edits[0][1] == 1.0:
        return forms.apply_delta(own_edits[0][0].tensors, name, original)
    base = original.float()
    value, mask = base.clone(), torch.ones_like(base)
    for edit, s in own_edits:
        if forms.is_zeroed(edit.tensors, name):
            mask *= 1 - s * (forms.apply_delta(edit.tensors, name, torch.ones_like(base)) == 0)
            continue
        dependencies = tuple((other, 1.0) for other, _ in edits if other.digest() in edit.after) if edit.after else ()
        made_on = apply_stack(name, original, dependencies).float()
        value += s * (forms.apply_delta(edit.tensors, name, made_on).float() - made_on)
    return value * mask
