"""The precision in which a model computes."""

import torch

from erasure.errors import unknown_value_error

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in. "auto" is bf16 where the hardware supports it natively, else fp32 on a CPU and fp16 on a GPU.

    Raises:
        UserError: The precision is unknown.
    """
    if precision != "auto":
        if precision not in DTYPES:
            raise unknown_value_error("dtype", precision, ["auto", *DTYPES])
        return DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    native_bf16 = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native_bf16 else torch.float32
