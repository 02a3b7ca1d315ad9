"""Several edits in one pipeline: what a parameter becomes under them, and how the pipeline samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from erasure.edits import deltas as forms
from erasure.edits.guidance import guidance_of
from erasure.families.base import Sampling

if TYPE_CHECKING:
    from erasure.edits.edit import Edit

Placed = tuple["Edit", float]  # an edit and its strength


@dataclass(frozen=True)
class Stack:
    """The edits in a pipeline, and the kept originals of everything they touch, in the dtype and on the device of that moment."""

    edits: tuple[Placed, ...] = ()
    originals: Mapping[str, Tensor] = field(default_factory=dict)
    networks: Mapping[str, int] = field(default_factory=dict)  # which objects the networks were, by part
    witnesses: Mapping[str, Tensor] = field(default_factory=dict)  # parameters no edit moves, as they were (erasure.edits.rounding)


def stack_of(pipe: Any) -> Stack:
    found: Stack = getattr(pipe, "erasure_stack", None) or Stack()
    return found


def sampling_under(edits: tuple[Placed, ...]) -> Sampling:
    """How a pipeline samples with these edits in it.

    Raises:
        UserError: a guidance edit whose method or fields do not exist.
    """
    guidance, one_step = [], None
    for edit, strength in edits:
        if edit.info.product == "guidance":
            guidance.append(guidance_of(edit.info.method, edit.info.fields, edit.info.concepts, strength))
        elif edit.info.product == "one-step":
            one_step = int(edit.info.fields["start"])
    return Sampling(tuple(guidance), one_step)


def stacked(name: str, original: Tensor, edits: tuple[Placed, ...]) -> Tensor:
    """One parameter under a stack: each edit adds s (new - what it was made on); zeroed entries come last, so that two edits that zero
    the same entry leave zero."""
    mine = [(edit, s) for edit, s in edits if name in edit.moved()]
    if not mine:
        return original
    if len(mine) == 1 and mine[0][1] == 1.0:
        return forms.new(mine[0][0].tensors, name, original)
    base = original.float()
    value, keep = base.clone(), torch.ones_like(base)
    for edit, s in mine:
        if forms.zeroes(edit.tensors, name):
            keep *= 1 - s * (forms.new(edit.tensors, name, torch.ones_like(base)) == 0)
            continue
        below = tuple((other, 1.0) for other, _ in edits if other.digest() in edit.after) if edit.after else ()
        under = stacked(name, original, below).float()
        value += s * (forms.new(edit.tensors, name, under).float() - under)
    return value * keep
