"""Meta tensors computed as a GPU would: autocast's casts, and attention whose kernel keeps no matrix of weights.

The meta device knows neither. Without autocast, activations would be as wide as the weights; without fused attention, every layer would
keep a matrix of tokens by tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# what torch.autocast computes in the lower precision on a GPU, as the networks here call it
LOWER_PRECISION = {
    *(F.linear, F.conv2d, F.conv1d, F.conv_transpose2d, torch.einsum, torch.addmm, torch.baddbmm, torch.bmm, torch.mm, torch.matmul),
    *(Tensor.matmul, Tensor.bmm, Tensor.mm, Tensor.__matmul__, Tensor.__rmatmul__),
}
# and what it computes in fp32
FULL_PRECISION = {
    *(F.layer_norm, F.group_norm, F.rms_norm, F.interpolate, F.softmax, F.mse_loss, torch.softmax, torch.pow, torch.exp, torch.rsqrt),
    *(Tensor.softmax, Tensor.pow, Tensor.__pow__, Tensor.__rpow__, Tensor.exp, Tensor.rsqrt, Tensor.sum, torch.sum),
}


class GpuKernels(TorchFunctionMode):
    """Runs the functions of torch on meta tensors as a GPU does.

    Args:
        dtype: of autocast; None switches it off.
        cache: keep the cast of every trained weight to the end of the block, as autocast does.
    """

    def __init__(self, dtype: torch.dtype | None = None, cache: bool = True) -> None:
        super().__init__()
        self.dtype, self.cache = dtype, cache
        self._casts: dict[int, Tensor] = {}

    def __exit__(self, *error: Any) -> None:
        self._casts.clear()
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # of torch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__bool__ and args[0].device.type == "meta":
            return False  # asked is only whether a mask of padding is all ones, and prompts are shorter than the context
        if self.dtype is not None and (func in LOWER_PRECISION or func is F.scaled_dot_product_attention):
            args, kwargs = tree_map(self._lower, args), tree_map(self._lower, kwargs)
        elif self.dtype is not None and func in FULL_PRECISION:
            args, kwargs = tree_map(to_full, args), tree_map(to_full, kwargs)
        return fused_attention(*args, **kwargs) if func is F.scaled_dot_product_attention else func(*args, **kwargs)

    def _lower(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype is self.dtype:
            return value
        is_cached = self.cache and value.requires_grad and value.is_leaf and value.dtype is torch.float32
        if not is_cached:
            return value.to(self.dtype)
        if id(value) not in self._casts:
            self._casts[id(value)] = value.to(self.dtype)
        return self._casts[id(value)]


def to_full(value: Any) -> Any:
    """Return a tensor of floating-point numbers in fp32, anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return attention (B, H, N, E) by the one fused kernel that has a meta form; like those of a GPU it keeps q, k, v and its output."""
    if key.shape[1] != query.shape[1]:  # grouped queries
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
    if attn_mask is not None and attn_mask.dtype is not torch.bool:
        attn_mask = attn_mask.to(query.dtype)
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return out
