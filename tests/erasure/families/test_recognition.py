"""The family of a model is recognized by its configs, never guessed: what belongs to none is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel

from erasure.errors import UserError
from erasure.families.recognition import POCKET_TEXT_CONFIG, recognize_family
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.loader import POCKET_FOLDER, load_model
from erasure.loading.pipeline_configs import load_released_configs
from tests import tiny


def read_pocket(part: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((POCKET_FOLDER / part / "config.json").read_text())
    return config


@pytest.mark.parametrize(("name", "family"), [("sd15", "sd1"), ("sd21-base", "sd2"), ("sd21", "sd2")])
def test_released_models(name: str, family: str) -> None:
    configs: Any = load_released_configs(name)
    assert recognize_family(configs.unet, configs.text_encoder, name) == family


def test_pocket_is_recognized_by_its_own_config() -> None:
    assert load_model("pocket", device="cpu").family == recognize_family(read_pocket("unet"), read_pocket("text_encoder"), "x") == "pocket"
    assert POCKET_TEXT_CONFIG == POCKET_FOLDER / "text_encoder" / "config.json"
    other = {**read_pocket("text_encoder"), "vocab_size": 1200}  # as wide as pocket, with other words
    assert recognize_family(read_pocket("unet"), other, "x") == "sd1"


def test_sizes_do_not_matter_and_defaults_count() -> None:
    assert recognize_family({"cross_attention_dim": 320}, {}, "x") == "sd1"
    assert recognize_family({"cross_attention_dim": 320, "use_linear_projection": True}, {"hidden_act": "gelu"}, "x") == "sd2"


@pytest.mark.parametrize(("activation", "linear"), [("gelu", False), ("quick_gelu", True), ("relu", False)])
def test_other_configs_are_refused_by_name_before_weights_are_loaded(activation: str, linear: bool, tmp_path: Path) -> None:
    message = (
        f"mine belongs to no known family: its text encoder has hidden_act {activation!r} and its UNet has use_linear_projection {linear}"
    )
    with pytest.raises(UserError, match=message):
        recognize_family({"use_linear_projection": linear}, {"hidden_act": activation}, "mine")
    folder = tiny.save_pipeline(tmp_path / "mine")
    for part, values in (("text_encoder", {"hidden_act": activation}), ("unet", {"use_linear_projection": linear})):
        config = json.loads((folder / part / "config.json").read_text())
        (folder / part / "config.json").write_text(json.dumps({**config, **values}))
        (weights,) = (folder / part).glob("*.safetensors")
        weights.write_bytes(b"")
    with pytest.raises(UserError, match="mine belongs to no known family"):
        load_model(folder)


def test_a_loaded_pipeline_is_refused_by_its_class_or_configs() -> None:
    parts = tiny.pipeline().components
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor")
    other_class = StableDiffusionImg2ImgPipeline(**{name: parts[name] for name in names}, requires_safety_checker=False)
    with pytest.raises(UserError, match="theirs is a StableDiffusionImg2ImgPipeline, a pipeline that starts from an image"):
        StableDiffusion(other_class, "theirs")
    config = CLIPTextConfig(**{**parts["text_encoder"].config.to_dict(), "hidden_act": "relu"})
    parts["text_encoder"] = CLIPTextModel(config)
    with pytest.raises(UserError, match="theirs belongs to no known family: its text encoder has hidden_act 'relu'"):
        StableDiffusion(StableDiffusionPipeline(**{name: parts[name] for name in names}, requires_safety_checker=False), "theirs")
