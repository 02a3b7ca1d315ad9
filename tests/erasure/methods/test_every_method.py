"""Every method: it moves only its region, costs what it forecasts, resumes exactly, and its saved edit generates the same images."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from erasure.concept import Concept
from erasure.config.registry import load_class
from erasure.edits import Edit, apply_edits
from erasure.erasing import erase, prepare
from erasure.errors import UnfitMethodWarning, UserError
from erasure.families.cost import Cost
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.base import Guided, Method
from erasure.recipes import configure_method
from erasure.training import fill_cache, saliency
from erasure.training.loop import TrainingOptions
from erasure.training.method_run import run_method
from erasure.training.preview import Preview
from tests import tiny
from tests.factories import CAT, METHODS, SMALL_FIELDS, TRAINED_METHODS, ready_method, small_method

# what the runs of `small_method` take on a tiny model, with an empty cache, from before the passes were counted by hooks
COUNTED = {
    "advunlearn": Cost(unet_forwards=82, unet_backwards=28, text_forwards=39, sample_gradients=20),
    "doco": Cost(unet_forwards=72, unet_backwards=10, text_forwards=19, sample_gradients=10),
    "duo": Cost(unet_forwards=86, unet_backwards=18, text_forwards=9, sample_gradients=18),
    "esd": Cost(unet_forwards=36, unet_backwards=6, text_forwards=11, sample_gradients=6),
    "fia": Cost(unet_forwards=16, text_forwards=6),
    "negative_prompt": Cost(),
    "npo": Cost(unet_forwards=63, unet_backwards=15, text_forwards=14, sample_gradients=15),
    "projected": Cost(),
    "salun": Cost(unet_forwards=77, unet_backwards=23, text_forwards=15, sample_gradients=15),
    "sfd": Cost(unet_forwards=104, unet_backwards=74, text_forwards=15, sample_gradients=74),
    "sfd_matching": Cost(unet_forwards=71, unet_backwards=15, text_forwards=22, sample_gradients=15),
    "sld": Cost(),
    "ssd": Cost(unet_forwards=56, unet_backwards=8, text_forwards=17, sample_gradients=8),
    "uce": Cost(text_forwards=8),
}


def generate(model: StableDiffusion) -> torch.Tensor:
    return model.decode(model.sample(["a cat", "a dog"], [1, 2], steps=4))


def test_every_method_is_here() -> None:
    assert set(METHODS) == set(SMALL_FIELDS)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_an_edit_moves_its_region_alone_and_generates_the_same_after_a_round_trip(name: str, prediction: str, tmp_path: Path) -> None:
    model = StableDiffusion(tiny.pipeline(prediction), "tiny", "fp32")
    method, before, base = ready_method(name, model), model.fingerprint(), generate(model)
    values = {n: p.detach().clone() for n, p in model.parameters().items()}
    edit = erase(model, CAT, method, out=tmp_path / "run")
    assert model.fingerprint() == before
    assert torch.equal(generate(model), base)
    assert not any(p.requires_grad for p in model.parameters().values())
    allowed = set(model.parameter_names(getattr(method, "region", "xattn-kv")))
    assert edit.moved_parameters() <= allowed
    assert edit.moved_parameters() or isinstance(method, Guided)
    with apply_edits(model, [edit]):
        images = generate(model)
        assert {n for n, p in model.parameters().items() if not torch.equal(p, values[n])} <= edit.moved_parameters()
    assert not torch.equal(images, base)
    loaded = Edit.load(tmp_path / "run")
    assert loaded.digest() == edit.digest()
    with apply_edits(model, [loaded]):
        assert torch.equal(generate(model), images)
    assert torch.equal(generate(model), base)


@pytest.mark.parametrize("name", METHODS)
def test_strength_zero_is_the_base(name: str, model: StableDiffusion, tmp_path: Path) -> None:
    edit, base = erase(model, CAT, ready_method(name, model), out=tmp_path / "run"), generate(model)
    if edit.info.product == "one-step":
        pytest.skip("a generator at strength 0 is the base, sampled in one step")
    edit.apply(model.pipe, strength=0.0)
    assert torch.equal(generate(model), base)


@pytest.mark.parametrize("name", METHODS)
def test_the_forecast_is_what_is_counted(name: str, model: StableDiffusion, tmp_path: Path) -> None:
    method = ready_method(name, model)
    (tmp_path / "run").mkdir()
    model.cost = Cost()
    run_method(model, CAT, method, TrainingOptions(folder=tmp_path / "run"))
    forecast, counted = method.forecast_cost(model, CAT), model.cost
    assert (forecast.unet_forwards, forecast.unet_backwards, forecast.sample_gradients) == (
        counted.unet_forwards,
        counted.unet_backwards,
        counted.sample_gradients,
    )
    assert counted == COUNTED[name]


BOUNDS: dict[str, Any] = {"protect": 1e-4, "protect_prompts": ("a dog",), "outward": 0.5, "drift": 0.1}


@pytest.mark.parametrize(("name", "fields"), [*((name, {}) for name in TRAINED_METHODS), ("esd", BOUNDS)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_equals_a_straight_run(
    name: str, fields: dict[str, Any], precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frequent_checkpoints: None
) -> None:
    model = StableDiffusion(tiny.pipeline(), "tiny", precision)
    method = ready_method(name, model, steps=4, **fields)
    erase(model, CAT, method, out=tmp_path / "straight")

    class Stop(BaseException):
        pass

    real, calls = type(method).step, []

    def failing(self: Any, context: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise Stop
        return real(self, context)

    monkeypatch.setattr(type(method), "step", failing)
    with pytest.raises(Stop):
        erase(model, CAT, method, out=tmp_path / "broken")
    assert not (tmp_path / "broken" / "result.json").exists()
    erase(model, CAT, method, out=tmp_path / "broken")
    for file in ("edit.safetensors", "edit.json", "train.jsonl", "result.json"):
        assert (tmp_path / "straight" / file).read_bytes() == (tmp_path / "broken" / file).read_bytes(), file
    assert len(calls) == 4 + 4 - 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", TRAINED_METHODS)
def test_a_preview_changes_nothing(name: str, model: StableDiffusion, tmp_path: Path) -> None:
    method = ready_method(name, model)
    erase(model, CAT, method, out=tmp_path / "alone")
    prepare(model, CAT, method, out=tmp_path / "watched").run(watch=Preview(tmp_path / "preview.png", ["a cat", ""], interval=0.0))
    assert (tmp_path / "preview.png").exists()
    for file in ("edit.safetensors", "edit.json", "train.jsonl"):
        assert (tmp_path / "alone" / file).read_bytes() == (tmp_path / "watched" / file).read_bytes(), file


@pytest.mark.parametrize("name", METHODS)
def test_several_concepts_and_every_recipe(name: str, model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase(
        model, [*CAT, Concept(name="dog", kind="object", prompts=("{}", "big {}"))], ready_method(name, model), out=tmp_path / "run"
    )
    assert [c["name"] for c in edit.info.concepts] == ["cat", "dog"]
    cls = load_class("erasure.methods", name, Method)
    for (kind, family), values in cls.recipes.items():
        method, concepts, _ = configure_method(cls, [Concept(name="cat", kind=kind)], family, {})
        assert all(getattr(method, key) == value for key, value in values.items() if key not in ("prompts", "anchor"))
        needs_unet = name in TRAINED_METHODS or name in ("fia", "ssd")
        assert (method.forecast_cost(model, concepts).unet_forwards > 0) == needs_unet


@pytest.mark.parametrize("name", TRAINED_METHODS)
def test_a_mask_holds_for_every_trained_method(name: str, model: StableDiffusion, tmp_path: Path) -> None:
    erase(model, CAT, small_method("salun", mask_fraction=0.2, steps=1), out=tmp_path / "salun")
    mask = tmp_path / "salun" / "mask.safetensors"
    if name in ("advunlearn", "sfd"):  # what they train, the text encoder and adapters, is not in a mask of the UNet
        with pytest.raises(UserError, match="selects nothing"):
            erase(model, CAT, ready_method(name, model, steps=3), out=tmp_path / "run", mask=mask)
        return
    edit = erase(model, CAT, ready_method(name, model, steps=3), out=tmp_path / "run", mask=mask)
    masks = saliency.load_mask(mask, model.parameters())
    for parameter in edit.moved_parameters():
        old, new = model.parameters()[parameter].detach().half(), edit.tensors[parameter]
        assert torch.equal(new[~masks[parameter]], old[~masks[parameter]])
    assert any((edit.tensors[n] != model.parameters()[n].detach().half()).any() for n in edit.moved_parameters())


def test_a_mask_is_refused_where_nothing_trains(model: StableDiffusion, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="UCE trains nothing"):
        erase(model, CAT, small_method("uce"), out=tmp_path / "run", mask=tmp_path / "mask.safetensors")


def test_teacher_caches_are_shared_between_methods_with_the_same_query(model: StableDiffusion) -> None:
    first = fill_cache.load_or_fill(model, small_method("esd").query(CAT, 0))  # type: ignore[attr-defined]
    done = model.cost.unet_forwards
    again = fill_cache.load_or_fill(model, replace(small_method("esd"), lr=0.5).query(CAT, 0))  # type: ignore[attr-defined]
    assert model.cost.unet_forwards == done
    assert torch.equal(first.x_t, again.x_t)


@pytest.mark.parametrize(("kind", "warns"), [("style", True), ("object", False)])
def test_a_method_that_did_badly_on_a_kind_says_so(kind: Any, warns: bool, model: StableDiffusion, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        erase(model, [Concept(name="cat", kind=kind)], small_method("ssd"), out=tmp_path / "run")
    messages = [str(warning.message) for warning in caught if warning.category is UnfitMethodWarning]
    assert bool(messages) == warns
    assert not messages or messages[0].startswith("SSD is a poor choice for a concept of kind style: ")
