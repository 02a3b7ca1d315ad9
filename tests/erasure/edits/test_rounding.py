"""Rounding of a fused and unfused LoRA is accepted; other changes of a weight are not."""

import pytest
import torch

from erasure.edits.rounding import holds_value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_is_let_through_and_a_weak_lora_is_not(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    w, delta = torch.randn(64, 64).to(dtype), torch.randn(64, 64).to(dtype)
    for size in (0.01, 0.1, 1.0, 5.0, 25.0):
        assert holds_value((w + size * delta) - size * delta, w, is_fused=False), size
    assert not holds_value(w + 0.02 * delta, w, is_fused=False)
    assert not holds_value((w + delta) - delta, w, is_fused=True)
    assert holds_value(w.clone(), w, is_fused=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("content", [torch.float32, torch.float16])  # an edit's values are fp16, also in fp32 weights
def test_changes_that_leave_zero_digits_are_not_rounding(dtype: torch.dtype, content: torch.dtype) -> None:
    torch.manual_seed(0)
    w = torch.randn(64, 64).to(content).to(dtype)
    small = w.abs() <= w.abs().float().quantile(0.1)
    others = {
        "zero": torch.zeros_like(w),
        "one": torch.ones_like(w),
        "signs": w.sign(),
        "pruned": w.where(~small, 0),
        "clamped": w.clamp(-1, 1),
        "8 bits": w.to(torch.float8_e4m3fn).to(dtype),
        "trained, in fp16": (w.float() + 0.02 * torch.randn(64, 64)).half().to(dtype),
        "halves": (2 * w).round() / 2,
    }
    for name, other in others.items():
        assert not holds_value(other, w, is_fused=False), name
    if dtype != torch.bfloat16:  # whose own digits are as coarse as that
        one = w.clone()
        one[3, 4] = (8 * w[3, 4]).round() / 8 + 0.125
        assert not holds_value(one, w, is_fused=False)


def test_a_lora_that_dwarfs_the_weights_is_not_recognized() -> None:
    torch.manual_seed(0)
    w, delta = torch.randn(64, 64).bfloat16(), 100 * torch.randn(64, 64).bfloat16()
    assert not holds_value((w + delta) - delta, w, is_fused=False)
