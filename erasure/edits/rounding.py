"""What rounding does to a weight: fusing and unfusing a LoRA, and a cast to a narrower dtype and back."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

NARROW_DTYPES = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)  # what a pipeline may be cast to


def holds_value(p: Tensor, expected: Tensor, is_fused: bool) -> bool:
    """Return whether a parameter holds a value, in its own dtype and on its own device.

    The values must agree bit for bit; where no LoRA is fused, what fusing and unfusing one leaves is accepted as well. That is (w + d) - d,
    off by the last digit of |w + d|: two rounding steps of w under a small LoRA, any multiple of them under a large one. The weight itself
    shows how large it was: the digits for which the sum had no room are zero since then. Digits that training changed are not.
    """
    expected = expected.to(p.device, p.dtype)
    if torch.equal(p, expected):
        return True
    if is_fused or not p.is_floating_point():
        return False
    actual, target = p.detach().float().cpu(), expected.float().cpu()
    magnitude, eps = target.abs(), torch.finfo(p.dtype).eps
    rms = magnitude.square().mean().sqrt()
    limit = 2 * eps * (magnitude + rms)
    was_cast = any(_fits_dtype(actual, dtype) and not _fits_dtype(target, dtype) for dtype in NARROW_DTYPES)
    if not was_cast:
        limit = torch.maximum(limit, 4 * _last_digit(actual).clamp(max=float(rms) / 8))
    return bool(((actual - target).abs() <= limit).all())


def _last_digit(values: Tensor) -> Tensor:
    """Return the last binary digit in use of every value; twice the median for 0, which has none.

    It is at most 8 times the median, because a sum leaves all values about equally coarse.
    """
    mantissa, exponent = torch.frexp(values)
    digits = (mantissa * 2**24).int()
    grid = torch.ldexp((digits & -digits).float(), exponent - 24)
    median = float(grid[values != 0].median()) if values.any() else 0.0
    return grid.clamp(max=8 * median).where(values != 0, 2 * median)


def _fits_dtype(values: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a dtype holds all values exactly."""
    return torch.equal(values.to(dtype).to(values.dtype), values)


def find_cast_dtype(parameters: Mapping[str, nn.Parameter], expected: Mapping[str, Tensor]) -> str:
    """Return the name of the dtype to which parameters were cast and back; empty if none explains their values."""
    for dtype in NARROW_DTYPES:
        if expected and all(torch.equal(parameters[n].cpu(), v.cpu().to(dtype).to(parameters[n].dtype)) for n, v in expected.items()):
            return str(dtype)
    return ""


def copy_unmoved(parameters: Mapping[str, nn.Parameter], moved: Iterable[str]) -> dict[str, Tensor]:
    """Return copies of the biases and norms that no edit moves.

    A cast and back drops their digits, even if the values of an edit survive it.
    """
    moved = set(moved)
    return {name: p.detach().clone() for name, p in parameters.items() if p.ndim == 1 and not p.is_meta and name not in moved}


def find_changed(parameters: Mapping[str, nn.Parameter], copies: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the copies that differ from the pipeline's parameters, as far as it still has them."""
    comparable = {
        name: parameters[name]
        for name in copies
        if name in parameters and not parameters[name].is_meta and parameters[name].shape == copies[name].shape
    }
    return {name: copies[name] for name, p in comparable.items() if not torch.equal(p, copies[name].to(p))}
