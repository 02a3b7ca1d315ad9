"""What edits leave on a pipeline: one object, `pipe.erasure_edits`, and a hook for guidance; a revert takes both away."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from erasure.edits.stacking import EditStack, stack_of
from erasure.errors import UserError
from erasure.families.sampling import sampling_of
from erasure.families.stable_diffusion import StableDiffusion
from tests import tiny
from tests.synthetic_edits import EDIT_KINDS, edit_of_kind


def hooks_of(pipe: Any) -> int:
    return sum(len(module._forward_hooks) for module in (pipe.unet, pipe.text_encoder, pipe.vae))


def test_a_model_around_a_pipeline_leaves_nothing_on_it() -> None:
    pipe = tiny.pipeline()
    before = set(vars(pipe))
    StableDiffusion(pipe, "tiny", "fp32").sample(["a cat"], [1], steps=2)
    assert set(vars(pipe)) == before and hooks_of(pipe) == 0


@pytest.mark.parametrize("kind", EDIT_KINDS)
@pytest.mark.parametrize("has_model", [False, True])
def test_an_edit_leaves_one_object_and_a_revert_removes_it(kind: str, has_model: bool) -> None:
    pipe = tiny.pipeline()
    if has_model:
        StableDiffusion(pipe, "tiny", "fp32")
    before = set(vars(pipe))
    first, second = (edit_of_kind(pipe, kind, seed) for seed in (0, 1))
    first.apply(pipe)
    second.apply(pipe, strength=0.5)
    assert set(vars(pipe)) - before == {"erasure_edits"}
    stack = pipe.erasure_edits
    assert isinstance(stack, EditStack) and stack_of(pipe) is stack and sampling_of(pipe) is stack.sampling
    assert [(edit.digest(), strength) for edit, strength in stack.edits] == [(first.digest(), 1.0), (second.digest(), 0.5)]
    assert hooks_of(pipe) == (kind == "guidance")
    assert len(stack.sampling.guidance_edits) == (2 if kind == "guidance" else 0)
    assert (stack.sampling.one_step_timestep == 625) == (kind == "one-step")
    first.revert(pipe)
    assert [edit.digest() for edit, _ in pipe.erasure_edits.edits] == [second.digest()]
    second.revert(pipe)
    assert set(vars(pipe)) == before and hooks_of(pipe) == 0
    assert stack_of(pipe).edits == () and sampling_of(pipe) == type(sampling_of(pipe))()


@pytest.mark.parametrize("kind", ["value", "guidance"])
def test_an_edit_that_fails_leaves_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny.pipeline()
    before, edit = set(vars(pipe)), edit_of_kind(pipe, kind)
    calls: list[int] = []

    def fail_once(_: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError

    monkeypatch.setattr("erasure.edits.transaction.attach_guidance_hook", fail_once)
    with pytest.raises(MemoryError):
        edit.apply(pipe)
    assert set(vars(pipe)) == before and not stack_of(pipe).edits and len(calls) == 2


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_pipeline_of_a_model_is_guided_too_and_the_model_is_guided_once(prediction: str) -> None:
    """Called as diffusers documents it, the pipeline inside a model generates what the model samples."""
    model = StableDiffusion(tiny.pipeline(prediction), "tiny", "fp32")

    def generate() -> torch.Tensor:
        noise = model.sample_noise([5])
        return model.pipe(["a cat"], num_inference_steps=4, guidance_scale=4.0, latents=noise, output_type="latent").images

    base = generate()
    edit = edit_of_kind(model.pipe, "guidance")
    edit.apply(model.pipe)
    sampled = model.sample(["a cat"], [5], steps=4, guidance=4.0)
    assert torch.allclose(generate(), sampled, atol=1e-3)
    assert not torch.allclose(base, sampled, atol=1e-3)
    later = StableDiffusion(model.pipe, "again", "fp32")  # built around a pipeline that already has the hook
    assert torch.equal(later.sample(["a cat"], [5], steps=4, guidance=4.0), sampled)
    edit.revert(model.pipe)
    assert torch.equal(generate(), base)


def test_a_generator_needs_its_timestep_in_the_schedule_of_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny.pipeline()
    edit = edit_of_kind(pipe, "one-step")
    edit.info.fields["init_timestep"] = 1000
    with pytest.raises(UserError, match=r"generates at timestep 1000 .* the schedule of this pipeline has 1000, counted from 0"):
        edit.apply(pipe)
    edit.info.fields["init_timestep"] = 999
    edit.apply(pipe).revert(pipe)
    pipe.scheduler.register_to_config(num_train_timesteps=500)
    with pytest.raises(UserError, match="this pipeline has 500"):
        edit.apply(pipe)
    with pytest.raises(UserError, match="this pipeline has 0"):
        edit.apply(SimpleNamespace(unet=pipe.unet, text_encoder=pipe.text_encoder))
