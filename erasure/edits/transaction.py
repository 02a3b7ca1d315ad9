"""A pipeline from one stack of edits to another: whole, or not at all."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from erasure.edits.checks import networks, parameters
from erasure.edits.guidance import attach
from erasure.edits.rounding import witnesses
from erasure.edits.stacking import Placed, Stack, sampling_under, stack_of, stacked
from erasure.errors import UserError
from erasure.families.base import Sampling, sampling_of, unwrapped


@torch.no_grad()
def restack(pipe: Any, edits: tuple[Placed, ...], names: Iterable[str]) -> None:
    """Set parameters from the kept originals and `edits`, and how the pipeline samples.

    Whatever is raised on the way, out-of-memory and KeyboardInterrupt included, the pipeline is then what it was before, bit for bit. For
    that every value is kept until the end: the original, which stays in the stack, or, where edits were in place already, a copy in CPU
    memory. Originals follow the pipeline to another device or dtype.

    Args:
        names: the parameters that change; the others keep their values.

    Raises:
        UserError: guidance that cannot be built, or a strength that takes a value beyond its dtype.
    """
    stack, sampling, found = stack_of(pipe), sampling_of(pipe), parameters(pipe)
    wanted = sampling_under(edits)
    originals, before = dict(stack.originals), {}
    try:
        for name in sorted(names):
            p = found[name]
            if name in originals:
                before[name], original = p.detach().to("cpu", copy=True), originals[name].to(p)
            else:
                before[name] = original = p.detach().clone()
            value = stacked(name, original, edits)
            if value is not original and not value.to(p.dtype).isfinite().all():
                raise UserError(f"{name} would hold NaN or Inf in {p.dtype}; apply the edit with a smaller strength.")
            p.copy_(value)
            originals[name] = original
        moved = {name for edit, _ in edits for name in edit.moved()}
        identities = {part: id(unwrapped(network)) for part, network in networks(pipe).items()}
        kept = {name: value for name, value in originals.items() if name in moved}
        seen = {name: value for name, value in (stack.witnesses or witnesses(found, moved)).items() if name not in moved} if kept else {}
        pipe.erasure_sampling, pipe.erasure_stack = wanted, Stack(edits, kept, identities, seen)
        attach(pipe)
    except BaseException:
        _roll_back(pipe, stack, sampling, found, before)
        raise


def _roll_back(pipe: Any, stack: Stack, sampling: Sampling, found: Mapping[str, nn.Parameter], before: Mapping[str, Tensor]) -> None:
    while True:
        try:
            for name, value in before.items():
                found[name].copy_(value)
            pipe.erasure_sampling, pipe.erasure_stack = sampling, stack
            attach(pipe)
            return
        except KeyboardInterrupt:
            continue  # Ctrl-C again; it is short, and half of it must not stay
