"""Change the stack of edits in a pipeline: completely, or not at all."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from erasure.edits.checks import networks_of, parameters_of
from erasure.edits.guidance import attach_guidance_hook
from erasure.edits.rounding import copy_unmoved
from erasure.edits.stacking import AppliedEdit, EditStack, apply_stack, build_sampling, set_stack, stack_of
from erasure.errors import UserError
from erasure.families.parameters import unwrap


@torch.no_grad()
def replace_stack(pipe: Any, edits: tuple[AppliedEdit, ...], names: Iterable[str]) -> None:
    """Set parameters from their original values and `edits`, and set how the pipeline samples.

    If anything is raised on the way, out-of-memory and KeyboardInterrupt included, the pipeline is restored bit for bit. For that every old
    value is held until the end: the original, which stays in the stack, or, where edits were applied already, a copy in CPU memory.
    Originals follow the pipeline to another device or dtype.

    Args:
        names: the parameters that change; the others stay as they are.

    Raises:
        UserError: guidance that cannot be built, or a strength that takes a value out of the range of its dtype.
    """
    stack, pipe_parameters, sampling = stack_of(pipe), parameters_of(pipe), build_sampling(edits)
    originals, backups = dict(stack.originals), {}
    try:
        for name in sorted(names):
            p = pipe_parameters[name]
            if name in originals:
                backups[name], original = p.detach().to("cpu", copy=True), originals[name].to(p)
            else:
                backups[name] = original = p.detach().clone()
            value = apply_stack(name, original, edits)
            if value is not original and not value.to(p.dtype).isfinite().all():
                raise UserError(f"{name} would hold NaN or Inf in {p.dtype}; apply the edit with a smaller strength.")
            p.copy_(value)
            originals[name] = original
        moved = {name for edit, _ in edits for name in edit.moved_parameters()}
        network_ids = {part: id(unwrap(network)) for part, network in networks_of(pipe).items()}
        moved_originals = {name: value for name, value in originals.items() if name in moved}
        unmoved = (
            {name: value for name, value in (stack.unmoved or copy_unmoved(pipe_parameters, moved)).items() if name not in moved}
            if moved_originals
            else {}
        )
        set_stack(pipe, EditStack(edits, moved_originals, network_ids, unmoved, sampling))
        attach_guidance_hook(pipe)
    except BaseException:
        _roll_back(pipe, stack, pipe_parameters, backups)
        raise


def _roll_back(pipe: Any, stack: EditStack, pipe_parameters: Mapping[str, nn.Parameter], backups: Mapping[str, Tensor]) -> None:
    """Restore values and stack, also if Ctrl-C comes again meanwhile."""
    while True:
        try:
            for name, value in backups.items():
                pipe_parameters[name].copy_(value)
            set_stack(pipe, stack)
            attach_guidance_hook(pipe)
            return
        except KeyboardInterrupt:
            continue  # start over: this is short, and must not be left half done
