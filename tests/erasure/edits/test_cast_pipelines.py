"""Pipelines that change their dtype between apply and revert."""

import pytest
import torch

from erasure.edits.stacking import stack_of
from erasure.errors import UserError
from tests import tiny
from tests.pipeline_state import copy_parameters, equal_parameters
from tests.synthetic_edits import edit_of_kind

WEIGHT_KINDS = ("value", "low-rank", "zeroed", "one-step")


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_pipeline_comes_back_as_the_cast_base(kind: str, dtype: torch.dtype) -> None:
    pipe, base = tiny.pipeline(), tiny.pipeline().to(dtype)
    edit, below = edit_of_kind(pipe, kind), edit_of_kind(pipe, "value", seed=4, layers=2)
    below.apply(pipe)
    edit.apply(pipe)
    pipe.to(dtype)
    edit.revert(pipe)
    below.revert(pipe)
    assert equal_parameters(copy_parameters(pipe), copy_parameters(base))


def test_a_cast_and_back_is_named_with_the_remedy() -> None:
    pipe = tiny.pipeline()
    edit = edit_of_kind(pipe, "low-rank")
    edit.apply(pipe, strength=0.37)
    pipe.to(torch.float16).to(torch.float32)
    with pytest.raises(UserError, match=r"cast to torch\.float16 and back.*Cast it to torch\.float16 again"):
        edit.revert(pipe)
    pipe.to(torch.float16)
    edit.revert(pipe)
    assert equal_parameters(copy_parameters(pipe), copy_parameters(tiny.pipeline().to(torch.float16)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_and_back_is_refused_where_other_weights_lost_digits(dtype: torch.dtype) -> None:
    pipe = tiny.pipeline()
    base, edit = copy_parameters(pipe), edit_of_kind(pipe, "value")  # its values are whole numbers: they survive
    edit.tensors.update({name: value.round() for name, value in edit.tensors.items()})
    edit.apply(pipe)
    bias = type(edit)({"unet.conv_out.bias": torch.ones(4).half()}, edit.info).apply(pipe)  # what no edit moves is less now
    pipe.to(dtype).to(torch.float32)
    cast = copy_parameters(pipe)
    assert all(torch.equal(cast[name], value.float()) for name, value in edit.tensors.items()) and not equal_parameters(cast, base)
    for act in (edit.revert, edit_of_kind(pipe, "low-rank").apply):
        with pytest.raises(UserError, match=rf"cast to {dtype} and back.*Cast it to {dtype} again first"):
            act(pipe, other_base=True) if act != edit.revert else act(pipe)
        assert equal_parameters(copy_parameters(pipe), cast)
    pipe.to(dtype)
    edit.revert(pipe)
    bias.revert(pipe)
    assert equal_parameters(copy_parameters(pipe), copy_parameters(tiny.pipeline().to(dtype)))
    assert not stack_of(pipe).unmoved


def test_a_base_without_digits_to_lose_comes_back_after_a_cast_and_back() -> None:
    pipe = tiny.pipeline().to(torch.float16).to(torch.float32)  # as a release in fp16 is
    base, edit = copy_parameters(pipe), edit_of_kind(pipe, "value")
    edit.apply(pipe)
    pipe.to(torch.float16).to(torch.float32)
    edit.revert(pipe)
    assert equal_parameters(copy_parameters(pipe), base)


def test_an_edit_of_everything_comes_back_after_a_cast_and_back() -> None:
    pipe = tiny.pipeline()
    base, below = copy_parameters(pipe), edit_of_kind(pipe, "value")
    whole = type(below)({name: torch.randn(value.shape).half() for name, value in base.items()}, below.info)
    below.apply(pipe)  # what is seen of the others now is moved by the next one
    whole.apply(pipe)
    below.revert(pipe)
    pipe.to(torch.float16).to(torch.float32)
    whole.revert(pipe)
    assert equal_parameters(copy_parameters(pipe), base)


def test_a_base_in_bf16_is_named_when_applying() -> None:
    edit = edit_of_kind(tiny.pipeline(), "value")
    with pytest.raises(UserError, match=r"another base.*Weights are bfloat16 here.*load the pipeline in float32 or float16"):
        edit.apply(tiny.pipeline().to(torch.bfloat16))
