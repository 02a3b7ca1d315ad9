"""The delta formats, in which an edit stores what changes in a parameter: new values, low-rank factors, or entries set to zero.

"unet.a.weight"             new values, fp16
"unet.a.weight::up", "::down"   factors of a difference, (O, r) and (r, I); for a convolution (O, r, 1, 1) and (r, I, k, k)
"unet.a.weight::zeroed"     flat indices of entries that become zero, int32, ascending

A parameter has one format.
"""

import math
import re

import torch
from torch import Tensor

from erasure.errors import UserError

UP, DOWN, ZEROED = "::up", "::down", "::zeroed"
DELTA_FORMATS = ((UP, DOWN), (ZEROED,), ("",))  # the suffixes that one parameter may have together
PARAMETER_NAME = re.compile(r"(unet|transformer|text_encoder(_2)?)(\.\w+)+")
FLOAT_DTYPES, INDEX_DTYPES = (torch.float16, torch.bfloat16, torch.float32), (torch.int32, torch.int64)


def parameter_names_of(tensors: dict[str, Tensor]) -> set[str]:
    """Return the names of the parameters that a set of tensors is about."""
    return {key.partition("::")[0] for key in tensors}


def is_zeroed(tensors: dict[str, Tensor], name: str) -> bool:
    """Return whether the edit sets entries of a parameter to zero."""
    return name + ZEROED in tensors


def factors_of(tensors: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor] | None:
    """Return the up (O, r) and down (r, I) factors of a parameter in fp32; None if it has another format."""
    return (tensors[name + UP].float(), tensors[name + DOWN].float()) if name + UP in tensors else None


def apply_delta(tensors: dict[str, Tensor], name: str, original: Tensor) -> Tensor:
    """Return the new value of a parameter, in the shape and on the device of `original`; low-rank factors give fp32."""
    if name in tensors:
        return tensors[name].to(original.device)
    if factors := factors_of(tensors, name):
        up, down = (factor.to(original.device) for factor in factors)
        return original.float() + (up.flatten(1) @ down.flatten(1)).reshape(original.shape)
    value = original.clone()
    value.view(-1)[tensors[name + ZEROED].to(original.device).long()] = 0
    return value


def check_deltas(tensors: dict[str, Tensor]) -> None:
    """Check that tensors can be an edit of some model.

    Raises:
        UserError: the message names the first tensor that cannot: an unknown name or suffix, a mixed or incomplete format, a wrong dtype or
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
    for name, name_suffixes in suffixes.items():
        if name_suffixes not in map(set, DELTA_FORMATS):
            suffix_list = " and ".join(suffix or "new values" for suffix in sorted(name_suffixes))
            raise UserError(f"{name} has {suffix_list} in the edit; it needs new values alone, {UP} with {DOWN}, or {ZEROED} alone.")
    for key, tensor in sorted(tensors.items()):
        if problem := _find_problem(key, tensor):
            raise UserError(f"{key} in the edit {problem}.")
    for name in (name for name, name_suffixes in suffixes.items() if UP in name_suffixes):
        up, down = tensors[name + UP], tensors[name + DOWN]
        if up.ndim != down.ndim or up.ndim not in (2, 4) or up.shape[1] != len(down) or up.shape[2:].numel() != 1:
            raise UserError(f"{name} has factors of shapes {tuple(up.shape)} and {tuple(down.shape)} in the edit, which do not multiply.")


def _find_problem(key: str, tensor: Tensor) -> str:
    """Return what is wrong with one tensor by itself, as the rest of a sentence; empty if nothing is."""
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
    """Return whether the delta of a parameter fits a parameter of that shape."""
    if name in tensors:
        return tuple(tensors[name].shape) == shape
    if name + UP in tensors:
        up, down = tensors[name + UP], tensors[name + DOWN]
        return (len(up), *down.shape[1:]) == shape
    return tensors[name + ZEROED].max().item() < math.prod(shape)


def to_zeroed_indices(mask: Tensor) -> Tensor:
    """Return the flat indices (int32, ascending) of the true entries of a mask of any shape."""
    return mask.flatten().nonzero().flatten().to(torch.int32)
