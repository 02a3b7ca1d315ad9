"""Bounds on training steps: what is protected does not move, a step gives up its outward part, drift costs, and off changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from erasure.edits import apply_edits
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.esd import ESD
from erasure.training.bounds import StepBounds
from tests.factories import CAT, ESD_FIELDS, small_method

PROTECTED = ("a dog", "the sea")


def random_parameters(seed: int) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in (("a", (3, 4)), ("b", (5,)))}


def flat(values: dict[str, Any]) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in values.values()])


@pytest.mark.parametrize("outward", [1.0, 0.5])
def test_the_outward_part_of_a_step_is_taken_out(outward: float) -> None:
    start, before, after = ({n: p.detach().clone() for n, p in random_parameters(i).items()} for i in range(3))
    drift = flat(before) - flat(start)
    step = flat(after) - flat(before)
    sign = 1.0 if step @ drift > 0 else -1.0
    moved = {n: nn.Parameter(before[n] + sign * (after[n] - before[n])) for n in before}
    StepBounds(start, {}, 0.0, outward).limit(moved, before)
    left = flat(moved) - flat(before)
    expected = sign * step - outward * (sign * step @ drift) / (drift @ drift) * drift
    assert torch.allclose(left, expected, atol=1e-6)
    assert (left @ drift).item() == pytest.approx((1 - outward) * (sign * step @ drift).item(), abs=1e-4)
    inward = {n: nn.Parameter(before[n] - sign * (after[n] - before[n])) for n in before}
    kept = flat(inward)
    StepBounds(start, {}, 0.0, outward).limit(inward, before)
    assert torch.equal(flat(inward), kept), "a step toward the start stays as it is"
    first = {n: nn.Parameter(after[n].clone()) for n in before}
    StepBounds(before, {}, 0.0, outward).limit(first, before)
    assert torch.equal(flat(first), flat(after)), "at the start there is no direction outward"


def test_drift_costs_the_squared_distance() -> None:
    parameters, start = random_parameters(0), {n: p.detach() for n, p in random_parameters(1).items()}
    loss = StepBounds(start, {}, 0.25, 0.0).drift_loss(parameters)
    assert isinstance(loss, torch.Tensor)
    assert loss.item() == pytest.approx(0.25 * (flat(parameters) - flat(start)).square().sum().item(), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert parameters["a"].grad is not None
    assert torch.allclose(parameters["a"].grad, 0.5 * (parameters["a"] - start["a"]).detach(), atol=1e-6)


def moved_weights(model: StableDiffusion, out: Path, **fields: Any) -> dict[str, torch.Tensor]:
    """How far ESD moves every key and value matrix."""
    before = {name: model.parameters()[name].detach().clone() for name in model.closed_form_layers()}
    edit = erase(model, CAT, ESD(**{**ESD_FIELDS, **fields}), out=out)
    with apply_edits(model, [edit]):
        return {name: model.parameters()[name].detach() - value for name, value in before.items()}


def test_protected_prompts_are_answered_as_before(model: StableDiffusion, tmp_path: Path) -> None:
    free = moved_weights(model, tmp_path / "free")
    bound = moved_weights(model, tmp_path / "bound", protect=1e-4, protect_prompts=PROTECTED)
    rows = model.encode(PROTECTED).sequence.flatten(0, 1)
    for name in free:
        assert (bound[name] @ rows.T).norm() < 0.02 * (free[name] @ rows.T).norm()
        assert bound[name].norm() > 0.01 * free[name].norm()


def test_a_strong_pull_keeps_the_weights_near_the_start(model: StableDiffusion, tmp_path: Path) -> None:
    free, pulled = (moved_weights(model, tmp_path / str(drift), drift=drift, steps=12) for drift in (0.0, 100.0))
    assert sum(m.norm() for m in pulled.values()) < 0.5 * sum(m.norm() for m in free.values())


@pytest.mark.parametrize(
    ("method", "fields", "complaint"),
    [
        ("esd", {"protect": -1.0}, "--protect must not be negative"),
        ("esd", {"outward": 1.5}, r"--outward must lie in \[0, 1\]"),
        ("esd", {"drift": float("nan")}, "--drift must not be negative"),
        ("esd", {"protect": 0.1}, "--protect needs --protect-prompts"),
        ("esd", {"protect": 1e9, "protect_prompts": PROTECTED}, "lower it"),
        ("esd", {"protect": 0.1, "protect_prompts": PROTECTED, "region": "selfattn"}, "nothing in --region selfattn reads them"),
        ("salun", {"protect": 0.1, "protect_prompts": PROTECTED}, "a mask cannot be used together"),
    ],
)
def test_bounds_that_cannot_hold_are_refused(
    model: StableDiffusion, method: str, fields: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=complaint):
        erase(model, CAT, small_method(method, **fields), out=tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
