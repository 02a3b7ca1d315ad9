"""Retrained models given to an audit: those of another concept are refused, whatever else fits."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from eval.retrained.divergences import load_retrained, read_trained_without

SHIPPED_WEIGHTS = sorted((Path(__file__).parents[3] / "eval" / "retrained" / "weights").glob("*.safetensors"))


def save_retrained(model: StableDiffusion, path: Path, without: str) -> str:
    """Save the model's own UNet with one changed tensor, in a file as scripts/train_retrained.py writes it."""
    weights = {name: value.half() for name, value in model.pipe.unet.state_dict().items()}
    weights["conv_out.bias"] = weights["conv_out.bias"] + 1
    save_file(weights, path, {"without": without} if without else None)
    return str(path)


def test_a_model_retrained_without_another_concept_is_refused(model: StableDiffusion, tmp_path: Path) -> None:
    glass = save_retrained(model, tmp_path / "a.safetensors", "glass")
    (edit,) = load_retrained(model, [glass], ["glass"])
    assert edit.moved_parameters() == {"unet.conv_out.bias"}
    for targets in (["neon"], ["glass", "fish"]):
        with pytest.raises(UserError, match=f"trained without glass, this audit asks about {', '.join(targets)}"):
            load_retrained(model, [glass], targets)


def test_files_without_metadata_are_accepted(model: StableDiffusion, tmp_path: Path) -> None:
    assert len(load_retrained(model, [save_retrained(model, tmp_path / "b.safetensors", "")], ["neon"])) == 1
    broken = tmp_path / "c.safetensors"
    broken.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be read as an erasure"):
        load_retrained(model, [str(broken)], ["neon"])


def test_shipped_weights_name_the_concept_that_was_left_out() -> None:
    assert len(SHIPPED_WEIGHTS) == 2
    assert all(read_trained_without(str(path)) == path.stem.split("-")[1] for path in SHIPPED_WEIGHTS)
