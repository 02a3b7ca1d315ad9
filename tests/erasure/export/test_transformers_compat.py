"""What is exported has the names that every version of transformers reads (docs/results/versions.md has the versions that were run)."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from transformers import CLIPTextModel

from erasure.edits import apply_edits
from erasure.erasing import erase
from erasure.export import export_edit
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.clip_tokenizer import build_tokenizer
from erasure.loading.loader import POCKET_FOLDER, load_model
from tests import tiny
from tests.factories import CAT, small_method


def tensor_names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


def check_encoder(encoder: Path, tokenizer: Path | None) -> None:
    """Every weight under the old level, and a tokenizer that can be made rebuilt from the old files alone."""
    assert all(name.startswith("text_model.") for name in tensor_names(encoder / "model.safetensors"))
    _, info = CLIPTextModel.from_pretrained(encoder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    if tokenizer:
        vocabulary = json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8"))
        lines = (tokenizer / "merges.txt").read_text(encoding="utf-8").splitlines()
        special = json.loads((tokenizer / "special_tokens_map.json").read_text())
        assert lines[0].startswith("#version")
        rebuilt = build_tokenizer(vocabulary, [tuple(line.split()) for line in lines[1:]], **special)  # type: ignore[misc]
        loaded = StableDiffusionPipeline.from_pretrained(tokenizer.parent, safety_checker=None).tokenizer
        for text in ("a house in stained glass style", "Two BOATS, it's 3 o'clock!", ""):
            assert rebuilt(text).input_ids == loaded(text).input_ids
        assert (rebuilt.pad_token_id, rebuilt.eos_token_id) == (loaded.pad_token_id, loaded.eos_token_id)


def test_pocket() -> None:
    check_encoder(POCKET_FOLDER / "text_encoder", POCKET_FOLDER / "tokenizer")
    # of the first edition, whose text encoder had the new names: every edit that was made on pocket is refused on another base
    assert load_model("pocket").fingerprint() == "1fabefd3563c7d67a3d6a7a75b0f6eda9587e047739e1a4c5cf0c6235f885b8b"
    configs = list(POCKET_FOLDER.rglob("*.json"))
    assert configs and not [path for path in configs if '"_name_or_path"' in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("export_format", ["folder", "text-encoder"])
def test_exports(export_format: str, tmp_path: Path) -> None:
    base = tiny.save_pipeline(tmp_path / "base")
    model = load_model(str(base), dtype="fp32")
    edit = erase(model, CAT, small_method("advunlearn" if export_format == "text-encoder" else "esd"), out=tmp_path / "run")
    out = tmp_path / "out"
    export_edit(model, edit, export_format, out)
    encoder, tokenizer = (out, None) if export_format == "text-encoder" else (out / "text_encoder", out / "tokenizer")
    check_encoder(encoder, tokenizer)
    configs = list(out.rglob("*.json"))
    assert configs
    for path in configs:
        assert str(tmp_path) not in path.read_text(encoding="utf-8"), path
    assert len({path.stat().st_mode for path in out.rglob("*.*") if path.is_file()}) == 1
    pipe = tiny.pipeline() if export_format == "text-encoder" else StableDiffusionPipeline.from_pretrained(out, safety_checker=None)
    if export_format == "text-encoder":
        pipe.text_encoder = CLIPTextModel.from_pretrained(out)
    with apply_edits(model, [edit]):
        assert torch.equal(StableDiffusion(pipe, "plain", "fp32").sample(["a cat"], [1], steps=2), model.sample(["a cat"], [1], steps=2))
