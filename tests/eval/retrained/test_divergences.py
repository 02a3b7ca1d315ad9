"""References given as oracles: whose concept is another are refused, whatever else fits."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from eval.retrained.divergences import load_retrained, read_trained_without

REFERENCES = sorted((Path(__file__).parent.parent / "eval" / "references").glob("*.safetensors"))


def reference(model: StableDiffusion, path: Path, without: str) -> str:
    """The model's own UNet, one tensor moved, in a file as scripts/train_retrained.py writes it."""
    weights = {name: value.half() for name, value in model.pipe.unet.state_dict().items()}
    weights["conv_out.bias"] = weights["conv_out.bias"] + 1
    save_file(weights, path, {"without": without} if without else None)
    return str(path)


def test_a_reference_of_another_concept_is_refused(model: StableDiffusion, tmp_path: Path) -> None:
    glass = reference(model, tmp_path / "a.safetensors", "glass")
    (edit,) = load_retrained(model, [glass], ["glass"])
    assert edit.moved_parameters() == {"unet.conv_out.bias"}
    for targets in (["neon"], ["glass", "fish"]):
        with pytest.raises(UserError, match=f"trained without glass, this audit asks about {', '.join(targets)}"):
            load_retrained(model, [glass], targets)


def test_files_that_say_nothing_are_taken_at_their_word(model: StableDiffusion, tmp_path: Path) -> None:
    assert len(load_retrained(model, [reference(model, tmp_path / "b.safetensors", "")], ["neon"])) == 1
    broken = tmp_path / "c.safetensors"
    broken.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be read as an erasure"):
        load_retrained(model, [str(broken)], ["neon"])


def test_shipped_references_say_what_they_never_saw() -> None:
    assert REFERENCES and all(read_trained_without(str(path)) == path.stem.split("-")[1] for path in REFERENCES)
