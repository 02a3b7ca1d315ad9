"""apply and revert happen completely or not at all: with failing tensor operations and between any two lines, for every kind of edit."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import erasure
from app.web.comparison import CompareRequest, EditChoice
from app.web.models import StudioModels
from app.web.studio import Studio
from erasure.edits import Edit, apply_edits, parameters_of
from erasure.edits.stacking import stack_of
from erasure.errors import UserError
from erasure.families.sampling import sampling_of
from erasure.families.stable_diffusion import StableDiffusion
from tests import tiny
from tests.synthetic_edits import EDIT_KINDS, edit_of_kind

Snapshot = tuple[dict[str, torch.Tensor], Any, Any, int]


def snapshot(pipe: Any) -> Snapshot:
    values = {name: p.detach().clone() for name, p in parameters_of(pipe).items()}
    return values, stack_of(pipe).edits, sampling_of(pipe), len(pipe.unet._forward_hooks)


def same(a: Snapshot, b: Snapshot) -> bool:
    return all(torch.equal(a[0][n], b[0][n]) for n in a[0] | b[0]) and a[1] == b[1] and a[2] == b[2] and a[3] == b[3]


class FailingAt(TorchDispatchMode):
    """The k-th tensor operation runs out of memory, and Ctrl-C comes during the next ones; counts them."""

    def __init__(self, k: int, only: str = "", interrupted: int = 0) -> None:
        super().__init__()
        self.k, self.only, self.interrupted, self.ran = k, only, interrupted, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.only in str(func):
            self.ran += 1
            if self.ran == self.k:
                raise torch.OutOfMemoryError("out of memory")
            if self.k < self.ran <= self.k + self.interrupted:
                raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


@contextmanager
def interrupted_at(line: int) -> Iterator[list[int]]:
    """KeyboardInterrupt before the n-th line that runs in the modules that change a pipeline; yields how many ran."""
    ran = [0]
    inside = tuple(str(Path(erasure.__file__).parent / name) for name in ("edits/transaction.py", "edits/edit.py", "edits/guidance.py"))

    def trace(frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(inside):
            return None
        if event == "line":
            ran[0] += 1
            if ran[0] == line:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield ran
    finally:
        sys.settrace(None)


def prepare(kind: str, action: str) -> tuple[Any, Callable[[], object]]:
    """A pipeline in which another edit moved a part of the weights before, and what to do with it."""
    pipe = tiny.pipeline()
    edit_of_kind(pipe, "value", seed=3, layers=1).apply(pipe)
    edit = edit_of_kind(pipe, kind, layers=3)
    if action == "revert":
        edit.apply(pipe, other_base=True)
        return pipe, lambda: edit.revert(pipe)
    return pipe, lambda: edit.apply(pipe, strength=0.5, other_base=True)


@pytest.mark.parametrize("kind", EDIT_KINDS)
@pytest.mark.parametrize("action", ("apply", "revert"))
def test_out_of_memory_in_any_operation_leaves_everything(kind: str, action: str) -> None:
    pipe, act = prepare(kind, action)
    before, k = snapshot(pipe), 1
    while True:
        with FailingAt(k) as mode:
            try:
                act()
                break
            except torch.OutOfMemoryError:
                pass
        assert same(snapshot(pipe), before), k
        k += 1
    assert mode.ran == k - 1 and (k > 10 or kind == "guidance")
    assert not same(snapshot(pipe), before)


@pytest.mark.parametrize("kind", EDIT_KINDS)
@pytest.mark.parametrize("action", ("apply", "revert"))
def test_an_interruption_before_any_line_leaves_everything_or_nothing(kind: str, action: str) -> None:
    pipe, act = prepare(kind, action)
    before, line, completed = snapshot(pipe), 1, 0
    while True:
        with interrupted_at(line) as ran:
            try:
                act()
                break
            except KeyboardInterrupt:
                pass
        if not same(snapshot(pipe), before):  # the last lines, after the change was complete
            other, act_on_other = prepare(kind, action)
            act_on_other()
            assert values_equal(snapshot(pipe), snapshot(other)), line
            pipe, act = prepare(kind, action)
            before, completed = snapshot(pipe), completed + 1
        line += 1
    assert line > ran[0] > 20
    assert completed <= 2
    other, act_on_other = prepare(kind, action)
    act_on_other()
    assert values_equal(snapshot(pipe), snapshot(other))


def values_equal(a: Snapshot, b: Snapshot) -> bool:
    """Of two pipelines: the same weights, as many edits, as many hooks."""
    return all(torch.equal(a[0][n], b[0][n]) for n in a[0]) and len(a[1]) == len(b[1]) and a[3] == b[3]


def test_further_interruptions_do_not_stop_the_rollback() -> None:
    pipe, act = prepare("value", "apply")
    before = snapshot(pipe)
    with FailingAt(3, "copy_", interrupted=4) as mode, pytest.raises(torch.OutOfMemoryError):
        act()
    assert mode.ran > 3 + 4
    assert same(snapshot(pipe), before)


def test_of_three_edits_none_remains_when_the_third_fails(model: StableDiffusion) -> None:
    edits, before = [edit_of_kind(model.pipe, kind, seed=i) for i, kind in enumerate(("value", "low-rank", "zeroed"))], snapshot(model.pipe)
    edits[2] = replace(edits[2], info=replace(edits[2].info, base={**edits[2].info.base, "fingerprint": "0" * 64}))
    with pytest.raises(UserError, match="another base"), apply_edits(model, edits):
        pass
    assert same(snapshot(model.pipe), before)
    with pytest.raises(ZeroDivisionError), apply_edits(model, edits[:2]):
        assert len(stack_of(model.pipe).edits) == 2
        raise ZeroDivisionError
    assert same(snapshot(model.pipe), before)


def test_an_edit_made_on_top_needs_the_other_at_full_strength_and_goes_first(model: StableDiffusion) -> None:
    below, above = edit_of_kind(model.pipe, "value", layers=1), edit_of_kind(model.pipe, "value", seed=1)
    above = replace(above, info=replace(above.info, base={**above.info.base, "after": [below.digest()]}))
    plain = snapshot(model.pipe)
    with apply_edits(model, [below, above]):
        assert len(stack_of(model.pipe).edits) == 2
    assert same(snapshot(model.pipe), plain)
    below.apply(model.pipe, strength=0.5)
    before = snapshot(model.pipe)
    with pytest.raises(UserError, match=rf"on top of edit {below.digest()}; apply that one first, at strength 1"):
        above.apply(model.pipe)
    assert same(snapshot(model.pipe), before)


def test_a_strength_that_overflows_is_refused_and_leaves_everything() -> None:
    pipe = tiny.pipeline().to(torch.float16)
    edit = edit_of_kind(pipe, "value")
    for tensor in edit.tensors.values():
        tensor.mul_(20_000).clamp_(-6e4, 6e4)
    before = snapshot(pipe)
    with pytest.raises(UserError, match=r"NaN or Inf in torch.float16; apply the edit with a smaller strength"):
        edit.apply(pipe, strength=8.0)
    assert same(snapshot(pipe), before)
    edit.apply(pipe)
    edit.revert(pipe)
    assert same(snapshot(pipe), before)


@pytest.mark.parametrize(
    ("strength", "got"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (10.5, "10.5"),
        (-11.0, "-11.0"),
        ("1", "'1'"),
        (None, "None"),
        (True, "True"),
        (False, "False"),
        ([1.0], "[1.0]"),
        (1j, "1j"),
        (torch.tensor(1.0), "tensor(1.)"),
        (10**400, "a number of more than 300 digits"),
        pytest.param(-(10**5000), "a number of more than 300 digits", id="5,000 digits"),
        ("x" * 1000, "'" + "x" * 39),
    ],
)
def test_a_strength_is_a_number_from_minus_10_to_10(strength: Any, got: str, model: StableDiffusion) -> None:
    before = snapshot(model.pipe)
    for edits in ([edit_of_kind(model.pipe, "value")], []):
        with pytest.raises(UserError) as error, apply_edits(model, edits, strength=strength):
            pass
        assert str(error.value).endswith(f"from -10 to 10 (0: the base, 1: as it was made), got {got}.")
    with pytest.raises(UserError, match="from -10 to 10"):
        edit_of_kind(model.pipe, "value").apply(model.pipe, strength=strength)
    assert same(snapshot(model.pipe), before)


@pytest.mark.parametrize("strength", [1, -10, 10.0, Fraction(1, 2), np.float32(0.5)])
def test_any_real_number_is_a_strength(strength: Any) -> None:
    pipe = tiny.pipeline()
    edit_of_kind(pipe, "low-rank").apply(pipe, strength)
    ((_, s),) = stack_of(pipe).edits
    assert type(s) is float and s == strength


def test_an_edit_is_applied_once(model: StableDiffusion, tmp_path: Path) -> None:
    edit = edit_of_kind(model.pipe, "value")
    edit.save(tmp_path)
    loaded = Edit.load(tmp_path)
    edit.apply(model.pipe, strength=0.5)
    for same_edit in (edit, loaded):
        with pytest.raises(UserError, match=r"already applied at strength 0\.5; revert it"):
            same_edit.apply(model.pipe, strength=2.0)
    loaded.revert(model.pipe)  # the same edit, loaded once more
    assert not stack_of(model.pipe).edits


def test_the_page_shows_the_base_after_a_failed_edit(model: StableDiffusion, tmp_path: Path) -> None:
    studio, edit = Studio(StudioModels.of(model), tmp_path), edit_of_kind(model.pipe, "value")
    edit.save(tmp_path / "edit")
    (name,) = studio.edits(model.source)
    *_, first = studio.sampler.compare(CompareRequest(model="tiny", prompt="a cat", seed=3, steps=2))
    with (
        pytest.raises(torch.OutOfMemoryError),
        FailingAt(3, "copy_"),
        studio.sampler.exclusive(studio.models.get(model.source)),
        apply_edits(model, studio.load_edits(model.source, [name])),
    ):
        pass
    studio.sampler.cached.clear()
    *_, comparison = studio.sampler.compare(CompareRequest(model="tiny", prompt="a cat", edits=(EditChoice(name),), seed=3, steps=2))
    assert torch.equal(comparison.base, first.base) and not torch.equal(comparison.erased, first.base)


def test_the_page_never_takes_an_edit_that_is_still_applied_for_the_base(model: StableDiffusion, tmp_path: Path) -> None:
    studio = Studio(StudioModels.of(model), tmp_path)
    *_, first = studio.sampler.compare(CompareRequest(model="tiny", prompt="a cat", seed=3, steps=2))
    studio.sampler.cached.clear()
    edit_of_kind(model.pipe, "value").apply(model.pipe)
    *_, comparison = studio.sampler.compare(CompareRequest(model="tiny", prompt="a cat", seed=3, steps=2))
    assert torch.equal(comparison.base, first.base)
    edit = edit_of_kind(model.pipe, "value").apply(model.pipe)
    with torch.no_grad():
        parameters_of(model.pipe)[sorted(edit.moved_parameters())[0]].add_(1)
    studio.sampler.cached.clear()
    with pytest.raises(UserError, match="no longer hold the values"):
        list(studio.sampler.compare(CompareRequest(model="tiny", prompt="a cat", seed=3, steps=2)))
    assert not studio.sampler.cached


def test_requests_do_not_see_each_other(model: StableDiffusion, tmp_path: Path) -> None:
    """Threads that compare at once, some with edits and some without, all show the base as the base."""
    studio = Studio(StudioModels.of(model), tmp_path)
    edit_of_kind(model.pipe, "value").save(tmp_path / "edit")
    (name,) = studio.edits(model.source)
    *_, alone = studio.sampler.compare(CompareRequest(model="tiny", prompt="a cat", edits=(EditChoice(name),), seed=3, steps=2))

    def compare(i: int) -> bool:
        studio.sampler.cached.clear()
        *_, comparison = studio.sampler.compare(
            CompareRequest(model="tiny", prompt="a cat", edits=(EditChoice(name),) if i % 2 else (), seed=3, steps=2)
        )
        return torch.equal(comparison.base, alone.base) and torch.equal(comparison.erased, alone.erased if i % 2 else alone.base)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(compare, range(12)))
