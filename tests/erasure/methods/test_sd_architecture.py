"""Every method runs on both generations of Stable Diffusion at their own depth and a tenth of their width."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from erasure.concept import Concept
from erasure.concept_check import concept_check_cost
from erasure.config.registry import load_class
from erasure.edits import Edit, apply_edits
from erasure.erasing import erase
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.base import Method
from erasure.recipes import configure_method
from tests.factories import METHODS, TRAINED_METHODS, ready_method
from tests.sd_architecture import clip_tokenizer, pipeline

CONCEPT = [Concept(name="Van Gogh", kind="style", prompts=("a painting by {} | a painting", "{}"))]


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def model(request: pytest.FixtureRequest) -> StableDiffusion:
    return StableDiffusion(pipeline(request.param, small=True), request.param, "fp32")


def test_the_tokenizer_is_clips() -> None:
    tokens = clip_tokenizer()
    assert len(tokens) == 49408
    assert tokens("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokens("a photo of a cat").input_ids == [i for i in open_clip.tokenize("a photo of a cat")[0].tolist() if i]


def test_the_depth_is_stable_diffusions(model: StableDiffusion) -> None:
    assert len(model.parameter_names("xattn-kv")) == 32
    assert len(model.linear_layers("ff-out")) == 16
    assert model.encode(["x"]).sequence.shape[1] == 77


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs(name: str, model: StableDiffusion, tmp_path: Path) -> None:
    extra = {"steps": 2, **({"warmup": 1} if name == "advunlearn" else {})} if name in TRAINED_METHODS else {}
    before = model.fingerprint()
    edit = erase(model, CONCEPT, ready_method(name, model, **extra), out=tmp_path / "run")
    assert model.fingerprint() == before
    with apply_edits(model, [Edit.load(tmp_path / "run")]):
        assert torch.isfinite(model.sample(["a painting by Van Gogh"], [0], steps=3)).all()
    assert (edit.info.cost["text_forwards"] > concept_check_cost(model, CONCEPT).text_forwards) == (edit.info.product != "guidance")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["style", "object", "person", "nsfw"])
def test_recipes_for_real_models_can_be_planned(name: str, kind: Any, model: StableDiffusion) -> None:
    for family in ("sd1", "sd2"):
        method, concepts, _ = configure_method(
            load_class("erasure.methods", name, Method), [Concept(name="Van Gogh", kind=kind)], family, {}
        )
        assert (method.forecast_cost(model, concepts).unet_forwards > 0) == (name in TRAINED_METHODS or name in ("fia", "ssd"))
