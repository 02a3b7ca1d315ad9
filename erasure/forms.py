"""The forms in which an edit says what became of a parameter: new values, low-rank factors, or entries set to zero.

"unet.a.weight"             new values, fp16
"unet.a.weight::up", "::down"   factors of a difference, (O, r) and (r, I); for a convolution (O, r, 1, 1) and (r, I, k, k)
"unet.a.weight::zeroed"     flat indices of entries that become zero, int32
"""

import math

import torch
from torch import Tensor

UP, DOWN, ZEROED = "::up", "::down", "::zeroed"


def names(tensors: dict[str, Tensor]) -> set[str]:
    """The parameters a set of tensors talks about."""
    return {key.partition("::")[0] for key in tensors}


def zeroes(tensors: dict[str, Tensor], name: str) -> bool:
    return name + ZEROED in tensors


def low_rank(tensors: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor] | None:
    """Up and down factors in fp32, if that is the form."""
    return (tensors[name + UP].float(), tensors[name + DOWN].float()) if name + UP in tensors else None


def new(tensors: dict[str, Tensor], name: str, original: Tensor) -> Tensor:
    """The new value of a parameter, on the device of `original`."""
    if name in tensors:
        return tensors[name].to(original.device)
    if factors := low_rank(tensors, name):
        up, down = (factor.to(original.device) for factor in factors)
        return original.float() + (up.flatten(1) @ down.flatten(1)).reshape(original.shape)
    value = original.clone()
    value.view(-1)[tensors[name + ZEROED].to(original.device).long()] = 0
    return value


def fits(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> bool:
    if name in tensors:
        return tuple(tensors[name].shape) == shape
    if name + UP in tensors:
        up, down = tensors[name + UP], tensors[name + DOWN]
        return (len(up), *down.shape[1:]) == shape
    return tensors[name + ZEROED].max().item() < math.prod(shape)


def zeroed(mask: Tensor) -> Tensor:
    """Flat indices (int32) of the true entries of a mask."""
    return mask.flatten().nonzero().flatten().to(torch.int32)
