"""What to say when a loss or a gradient is not finite: the likely cause, and what to change."""

import torch
from torch import Tensor

from erasure.families.base import DTYPES


def advice(compute: torch.dtype, step: int, rate: str) -> str:
    """Advice for a loss that is NaN or Inf at a step, where nothing else is known.

    Args:
        compute: what the model computes in.
        step: updates made so far; before the first one the learning rate cannot be the cause.
        rate: what the learning rate is called where it is set, such as "--lr".
    """
    if compute is not torch.float32:
        name = next(short for short, dtype in DTYPES.items() if dtype is compute)
        return f"the likely cause is {name}, so compute with --dtype fp32" + (f"; if that changes nothing, lower {rate}" if step else "")
    if step:
        return f"the updates have grown too large, so lower {rate}"
    return "no update has been made yet, so the model's weights or its noise schedule are at fault; check that it generates an image"


def finite(*tensors: Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
