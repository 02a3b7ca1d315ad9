"""What rounding leaves in a weight: fusing and unfusing a LoRA, and a cast to a narrower dtype and back."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

NARROW = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)  # what a pipeline may be cast to


def holds(p: Tensor, expected: Tensor, fused: bool) -> bool:
    """Whether a parameter holds a value, in its own dtype and on its own device.

    Bit for bit; where no LoRA is fused, what fusing and unfusing one leaves is let through as well. That is (w + d) - d, off by the last
    digit of |w + d|: two rounding steps of w under a small LoRA, any multiple of them under a large one. How large it was is read off the
    weight itself, for the digits that the sum had no room for are zero ever since. Digits that a training changed are not.
    """
    expected = expected.to(p.device, p.dtype)
    if torch.equal(p, expected):
        return True
    if fused or not p.is_floating_point():
        return False
    here, there = p.detach().float().cpu(), expected.float().cpu()
    size, eps = there.abs(), torch.finfo(p.dtype).eps
    typical = size.square().mean().sqrt()
    limit = 2 * eps * (size + typical)
    if not any(_fits(here, dtype) and not _fits(there, dtype) for dtype in NARROW):  # such weights were cast, not added to
        limit = torch.maximum(limit, 4 * _grid(here).clamp(max=float(typical) / 8))
    return bool(((here - there).abs() <= limit).all())


def _grid(values: Tensor) -> Tensor:
    """The last binary digit in use of every value, no coarser than 8 times the median, for a sum leaves all about as coarse; twice the
    median for 0, which has none."""
    mantissa, exponent = torch.frexp(values)
    digits = (mantissa * 2**24).int()
    grid = torch.ldexp((digits & -digits).float(), exponent - 24)
    median = float(grid[values != 0].median()) if values.any() else 0.0
    return grid.clamp(max=8 * median).where(values != 0, 2 * median)


def _fits(values: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(values.to(dtype).to(values.dtype), values)


def rounded_to(found: Mapping[str, nn.Parameter], expected: Mapping[str, Tensor]) -> str:
    """The dtype that parameters were cast to and back; empty where there are none, or that is not what happened."""
    for dtype in NARROW:
        if expected and all(torch.equal(found[n].cpu(), v.cpu().to(dtype).to(found[n].dtype)) for n, v in expected.items()):
            return str(dtype)
    return ""


def witnesses(found: Mapping[str, nn.Parameter], moved: Iterable[str]) -> dict[str, Tensor]:
    """Copies of the biases and norms that no edit moves. A cast and back drops their digits, also where an edit's own values survive it."""
    moved = set(moved)
    return {name: p.detach().clone() for name, p in found.items() if p.ndim == 1 and not p.is_meta and name not in moved}


def disagreeing(found: Mapping[str, nn.Parameter], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The witnesses that the pipeline no longer bears out, as far as it still has their parameters."""
    here = {name: found[name] for name in kept if name in found and not found[name].is_meta and found[name].shape == kept[name].shape}
    return {name: kept[name] for name, p in here.items() if not torch.equal(p, kept[name].to(p))}
