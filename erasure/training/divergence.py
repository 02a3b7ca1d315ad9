"""Advice for a loss or gradient that is NaN or Inf: the likely cause, and what to change."""

import torch
from torch import Tensor

from erasure.families.precision import DTYPES


def explain_divergence(compute_dtype: torch.dtype, step: int, lr_flag: str) -> str:
    """Return advice for a loss that is NaN or Inf, when nothing else is known.

    Args:
        compute_dtype: the dtype the model computes in.
        step: updates made so far; before the first one the learning rate cannot be the cause.
        lr_flag: the option that sets the learning rate, such as "--lr".
    """
    if compute_dtype is not torch.float32:
        name = next(dtype_name for dtype_name, dtype in DTYPES.items() if dtype is compute_dtype)
        return f"the likely cause is {name}, so compute with --dtype fp32" + (f"; if that changes nothing, lower {lr_flag}" if step else "")
    if step:
        return f"the updates have grown too large, so lower {lr_flag}"
    return "no update has been made yet, so the model's weights or its noise schedule are at fault; check that it generates an image"


def all_finite(*tensors: Tensor) -> bool:
    """Return whether no tensor, whatever its shape, holds NaN or Inf."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
