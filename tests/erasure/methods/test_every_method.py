"""What holds for every method: it moves what it says, counts what it costs, continues where it stood, and its edit draws what it drew."""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from erasure.concept import Concept
from erasure.config.registry import list_modules, load_class
from erasure.edits import Edit
from erasure.erasing import apply_edits, configure_method, erase, run_method
from erasure.errors import UserError
from erasure.families.base import Cost
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.base import Guided, Method, Trained
from erasure.training import fill_cache as recorder
from erasure.training.loop import TrainingOptions
from erasure.training.preview import Preview
from tests import tiny

CAT = [Concept(name="cat", kind="object", prompts=("{}", "a {} at night | night"))]
KEEP = ("a dog", "a cat", "the sea")
WALKS = {"walks": 4, "walk_steps": 3, "lr": 1e-3, "steps": 3, "batch": 2}
SMALL: dict[str, dict[str, Any]] = {
    "esd": WALKS,
    "salun": {**WALKS, "retain": KEEP, "retain_walks": 4, "retain_batch": 3},
    "advunlearn": {**WALKS, "retain": KEEP, "retain_walks": 4, "retain_batch": 3, "attack_steps": 2, "warmup": 2, "tokens": 2, "steps": 4},
    "uce": {"preserve": KEEP, "probes": KEEP},
    "fia": {"r2": 0.1, "record_steps": 2, "walk_steps": 4},
    "sfd": {
        "steps": 2,
        "batch": 2,
        "lr": 1e-3,
        "lr_fake": 1e-3,
        "rank": 2,
        "retain": KEEP,
        "distil_regression": 2,
        "distil_steps": 3,
        "distil_walks": 4,
        "walk_steps": 3,
    },
    "sfd_matching": {"steps": 3, "batch": 2, "retain_batch": 3, "lr": 1e-3, "retain": KEEP, "draws": 4, "retain_draws": 4, "points": 3},
    "negative_prompt": {},
    "sld": {"warmup": 0.3},
}
METHODS = list_modules("erasure.methods")
TRAINED = [name for name in METHODS if issubclass(load_class("erasure.methods", name, Method), Trained)]


GENERATORS = Path(tempfile.mkdtemp(prefix="erasure-generators-"))


def small(name: str, **fields: Any) -> Method:
    return load_class("erasure.methods", name, Method)(**{**SMALL[name], **fields})


def ready(name: str, model: StableDiffusion, **fields: Any) -> Method:
    """`small`, with the generator it needs on this model."""
    if name == "sfd_matching":
        fields["generator"] = str(GENERATORS / f"{model.fingerprint()[:12]}-{model.compute_dtype}")
        erase(model, CAT, small("sfd"), out=Path(fields["generator"]))
    return small(name, **fields)


def drawn(model: StableDiffusion) -> torch.Tensor:
    return model.decode(model.sample(["a cat", "a dog"], [1, 2], steps=4))


def test_every_method_is_here() -> None:
    assert set(METHODS) == set(SMALL)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_an_edit_moves_what_it_says_and_draws_the_same_after_a_round_trip(name: str, prediction: str, tmp_path: Path) -> None:
    model = StableDiffusion(tiny.pipeline(prediction), "tiny", "fp32")
    method, before, base = ready(name, model), model.fingerprint(), drawn(model)
    values = {n: p.detach().clone() for n, p in model.parameters().items()}
    edit = erase(model, CAT, method, out=tmp_path / "run")
    assert model.fingerprint() == before
    assert torch.equal(drawn(model), base)
    assert not any(p.requires_grad for p in model.parameters().values())
    allowed = set(model.parameter_names(getattr(method, "region", getattr(method, "layers", "xattn-kv"))))
    assert edit.moved_parameters() <= allowed
    assert edit.moved_parameters() or isinstance(method, Guided)
    with apply_edits(model, [edit]):
        pictures = drawn(model)
        assert {n for n, p in model.parameters().items() if not torch.equal(p, values[n])} <= edit.moved_parameters()
    assert not torch.equal(pictures, base)
    again = Edit.load(tmp_path / "run")
    assert again.digest() == edit.digest()
    with apply_edits(model, [again]):
        assert torch.equal(drawn(model), pictures)
    assert torch.equal(drawn(model), base)


@pytest.mark.parametrize("name", METHODS)
def test_strength_zero_is_the_base(name: str, model: StableDiffusion, tmp_path: Path) -> None:
    edit, base = erase(model, CAT, ready(name, model), out=tmp_path / "run"), drawn(model)
    if edit.info.product == "one-step":
        pytest.skip("a generator at strength 0 is the base asked for one step")
    edit.apply(model.pipe, strength=0.0)
    assert torch.equal(drawn(model), base)


@pytest.mark.parametrize("name", METHODS)
def test_the_forecast_is_what_is_counted(name: str, model: StableDiffusion, tmp_path: Path) -> None:
    method = ready(name, model)
    (tmp_path / "run").mkdir()
    model.cost = Cost()
    run_method(model, CAT, method, TrainingOptions(folder=tmp_path / "run"))
    forecast, counted = method.forecast_cost(model, CAT), model.cost
    assert (forecast.unet_forwards, forecast.unet_backwards, forecast.sample_gradients) == (
        counted.unet_forwards,
        counted.unet_backwards,
        counted.sample_gradients,
    )


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_equals_a_straight_run(name: str, precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = StableDiffusion(tiny.pipeline(), "tiny", precision)
    monkeypatch.setattr("erasure.erasing.Loop", partial(TrainingOptions, checkpoint_every=2))
    method = ready(name, model, steps=4)
    erase(model, CAT, method, out=tmp_path / "straight")

    class Stop(BaseException):
        pass

    real, calls = type(method).step, []

    def failing(self: Any, play: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise Stop
        return real(self, play)

    monkeypatch.setattr(type(method), "step", failing)
    with pytest.raises(Stop):
        erase(model, CAT, method, out=tmp_path / "broken")
    assert not (tmp_path / "broken" / "result.json").exists()
    erase(model, CAT, method, out=tmp_path / "broken")
    for file in ("edit.safetensors", "edit.json", "train.jsonl", "result.json"):
        assert (tmp_path / "straight" / file).read_bytes() == (tmp_path / "broken" / file).read_bytes(), file
    assert len(calls) == 4 + 4 - 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", TRAINED)
def test_watching_changes_nothing(name: str, model: StableDiffusion, tmp_path: Path) -> None:
    method = ready(name, model)
    erase(model, CAT, method, out=tmp_path / "alone")
    erase(model, CAT, method, out=tmp_path / "watched", on_step=Preview(tmp_path / "preview.png", ["a cat", ""], interval=0.0))
    assert (tmp_path / "preview.png").exists()
    for file in ("edit.safetensors", "edit.json", "train.jsonl"):
        assert (tmp_path / "alone" / file).read_bytes() == (tmp_path / "watched" / file).read_bytes(), file


@pytest.mark.parametrize("name", METHODS)
def test_several_concepts_and_every_recipe(name: str, model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase(model, [*CAT, Concept(name="dog", kind="object", prompts=("{}", "big {}"))], ready(name, model), out=tmp_path / "run")
    assert [c["name"] for c in edit.info.concepts] == ["cat", "dog"]
    cls = load_class("erasure.methods", name, Method)
    for (kind, family), values in cls.recipes.items():
        method, concepts, _ = configure_method(cls, [Concept(name="cat", kind=kind)], family, {})
        assert all(getattr(method, key) == value for key, value in values.items() if key not in ("prompts", "anchor"))
        asks = name in TRAINED or name == "fia"
        assert (method.forecast_cost(model, concepts).unet_forwards > 0) == asks


@pytest.mark.parametrize("name", TRAINED)
def test_a_mask_holds_for_every_trained_method(name: str, model: StableDiffusion, tmp_path: Path) -> None:
    erase(model, CAT, small("salun", mask_fraction=0.2, steps=1), out=tmp_path / "salun")
    mask = tmp_path / "salun" / "mask.safetensors"
    if name in ("advunlearn", "sfd"):  # what they train, the text encoder and adapters, is not in a mask of the UNet
        with pytest.raises(UserError, match="selects nothing"):
            erase(model, CAT, ready(name, model, steps=3), out=tmp_path / "run", mask=mask)
        return
    edit = erase(model, CAT, ready(name, model, steps=3), out=tmp_path / "run", mask=mask)
    from erasure.training import saliency

    masks = saliency.load_mask(mask, model.parameters())
    for parameter in edit.moved_parameters():
        old, new = model.parameters()[parameter].detach().half(), edit.tensors[parameter]
        assert torch.equal(new[~masks[parameter]], old[~masks[parameter]])
    assert any((edit.tensors[n] != model.parameters()[n].detach().half()).any() for n in edit.moved_parameters())


def test_a_mask_is_refused_where_nothing_trains(model: StableDiffusion, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="UCE trains nothing"):
        erase(model, CAT, small("uce"), out=tmp_path / "run", mask=tmp_path / "mask.safetensors")


def test_recordings_are_shared_between_methods_that_ask_the_same(model: StableDiffusion) -> None:
    first = recorder.load_or_fill(model, small("esd").record(CAT, 0))  # type: ignore[attr-defined]
    done = model.cost.unet_forwards
    again = recorder.load_or_fill(model, replace(small("esd"), lr=0.5).record(CAT, 0))  # type: ignore[attr-defined]
    assert model.cost.unet_forwards == done
    assert torch.equal(first.x_t, again.x_t)
