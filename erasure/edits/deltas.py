"""The forms in which an edit says what became of a parameter: new values, low-rank factors, or entries set to zero.

"unet.a.weight"             new values, fp16
"unet.a.weight::up", "::down"   factors of a difference, (O, r) and (r, I); for a convolution (O, r, 1, 1) and (r, I, k, k)
"unet.a.weight::zeroed"     flat indices of entries that become zero, int32, ascending

A parameter has one form.
"""

import math
import re

import torch
from torch import Tensor

from erasure.errors import UserError

UP, DOWN, ZEROED = "::up", "::down", "::zeroed"
DELTA_FORMATS = ((UP, DOWN), (ZEROED,), ("",))  # the suffixes that a parameter may have together
PARAMETER_NAME = re.compile(r"(unet|text_encoder)(\.\w+)+")
FLOAT_DTYPES, INDEX_DTYPES = (torch.float16, torch.bfloat16, torch.float32), (torch.int32, torch.int64)


def parameter_names_of(tensors: dict[str, Tensor]) -> set[str]:
    """The parameters a set of tensors talks about."""
    return {key.partition("::")[0] for key in tensors}


def is_zeroed(tensors: dict[str, Tensor], name: str) -> bool:
    return name + ZEROED in tensors


def factors_of(tensors: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor] | None:
    """Up and down factors in fp32, if that is the form."""
    return (tensors[name + UP].float(), tensors[name + DOWN].float()) if name + UP in tensors else None


def apply_delta(tensors: dict[str, Tensor], name: str, original: Tensor) -> Tensor:
    """The new value of a parameter, on the device of `original`."""
    if name in tensors:
        return tensors[name].to(original.device)
    if factors := factors_of(tensors, name):
        up, down = (factor.to(original.device) for factor in factors)
        return original.float() + (up.flatten(1) @ down.flatten(1)).reshape(original.shape)
    value = original.clone()
    value.view(-1)[tensors[name + ZEROED].to(original.device).long()] = 0
    return value


def check_deltas(tensors: dict[str, Tensor]) -> None:
    """Complain about tensors that are no edit of any model.

    Raises:
        UserError: it names the first such tensor: a name or suffix that no edit has, a form that is mixed or incomplete, another dtype or
            number of dimensions, no entry at all, NaN or Inf, indices that are negative, unordered or duplicated.
    """
    suffixes: dict[str, set[str]] = {}
    for key in sorted(tensors):
        name, colons, suffix_name = key.partition("::")
        if not PARAMETER_NAME.fullmatch(name):
            raise UserError(f"{key[:200]!r} in the edit is not the name of a parameter of unet or text_encoder.")
        if (suffix := colons + suffix_name) not in ("", UP, DOWN, ZEROED):
            raise UserError(f"{key[:200]!r} in the edit has an unknown suffix; known are {UP}, {DOWN} and {ZEROED}.")
        suffixes.setdefault(name, set()).add(suffix)
    for name, present in suffixes.items():
        if present not in map(set, DELTA_FORMATS):
            mixed = " and ".join(suffix or "new values" for suffix in sorted(present))
            raise UserError(f"{name} has {mixed} in the edit; it needs new values alone, {UP} with {DOWN}, or {ZEROED} alone.")
    for key, tensor in sorted(tensors.items()):
        if problem := _find_problem(key, tensor):
            raise UserError(f"{key} in the edit {problem}.")
    for name in (name for name, present in suffixes.items() if UP in present):
        up, down = tensors[name + UP], tensors[name + DOWN]
        if up.ndim != down.ndim or up.ndim not in (2, 4) or up.shape[1] != len(down) or up.shape[2:].numel() != 1:
            raise UserError(f"{name} has factors of shapes {tuple(up.shape)} and {tuple(down.shape)} in the edit, which do not multiply.")


def _find_problem(key: str, tensor: Tensor) -> str:
    """What is wrong with one tensor by itself, as the rest of a sentence; nothing if it is sound."""
    allowed = INDEX_DTYPES if key.endswith(ZEROED) else FLOAT_DTYPES
    if tensor.dtype not in allowed:
        dtype_names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        return f"has dtype {str(tensor.dtype).removeprefix('torch.')}; allowed are {dtype_names}"
    if not tensor.numel():
        return f"is empty (shape {tuple(tensor.shape)})"
    if not key.endswith(ZEROED):
        return "" if tensor.isfinite().all() else f"holds NaN or Inf ({int((~tensor.isfinite()).sum())} of {tensor.numel()} entries)"
    if tensor.ndim != 1:
        return f"has {tensor.ndim} dimensions; indices have one"
    if tensor.min() < 0:
        return f"holds the negative index {int(tensor.min())}"
    return "" if (tensor.diff() > 0).all() else "holds indices that are unordered or duplicated"


def fits_shape(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> bool:
    if name in tensors:
        return tuple(tensors[name].shape) == shape
    if name + UP in tensors:
        up, down = tensors[name + UP], tensors[name + DOWN]
        return (len(up), *down.shape[1:]) == shape
    return tensors[name + ZEROED].max().item() < math.prod(shape)


def to_zeroed_indices(mask: Tensor) -> Tensor:
    """Flat indices (int32) of the true entries of a mask."""
    return mask.flatten().nonzero().flatten().to(torch.int32)
