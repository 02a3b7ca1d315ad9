"""Erasures made elsewhere: in whatever format they come, they audit like the edit they came from."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from erasure import export
from erasure.concept import Concept
from erasure.edits import Edit, apply_edits
from erasure.edits.external.external_edit import load_external
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.base import Method
from erasure.storage.edit_folders import is_edit_path
from tests import tiny
from tests.command_line import run_words
from tests.factories import small_method

CAT = [Concept(name="cat", kind="object", prompts=("a {} | a thing",))]


def erase_cat(model: StableDiffusion, method: Method, out: Path) -> Edit:
    return erase(model, CAT, method, out=out)


def generate(model: StableDiffusion, edit: Edit) -> torch.Tensor:
    with apply_edits(model, [edit]):
        return model.sample(["a cat"], [1], steps=2)


@pytest.mark.parametrize("file_format", ["folder", "text-encoder", "lora", "state"])
def test_every_format_generates_what_the_edit_generates(file_format: str, model: StableDiffusion, tmp_path: Path) -> None:
    name = {"text-encoder": "advunlearn", "lora": "uce"}.get(file_format, "esd")
    edit = erase_cat(model, small_method(name), tmp_path / "edit")
    if file_format == "state":
        values = {key.removeprefix("unet."): value for key, value in edit.tensors.items()}
        save_file(values, tmp_path / "external.safetensors")
        path = tmp_path / "external.safetensors"
    else:
        path = tmp_path / "external"
        export.export_edit(model, edit, file_format, path)
    assert is_edit_path(str(tmp_path / "edit")) and not is_edit_path(str(path))
    if path.suffix == ".safetensors":  # also where it lies beside an edit
        path = path.rename(tmp_path / "edit" / "other.safetensors")
        assert is_edit_path(str(tmp_path / "edit" / "edit.safetensors")) and not is_edit_path(str(path))
    loaded = load_external(model, str(path), CAT)
    assert loaded.moved_parameters() == edit.moved_parameters()
    assert torch.allclose(generate(model, loaded), generate(model, edit), atol=2e-2)
    if file_format != "lora":  # whose two factors are each rounded
        assert torch.equal(generate(model, loaded), generate(model, edit))
    assert loaded.info.concepts[0]["name"] == "cat"


def test_a_lora_in_kohyas_layout_is_scaled_by_alpha(model: StableDiffusion, tmp_path: Path) -> None:
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    layers = {
        f"lora_unet_{block.replace('.', '_')}_attn2_to_q": f"unet.{block}.attn2.to_q",
        f"lora_unet_{block.replace('.', '_')}_ff_net_2": f"unet.{block}.ff.net.2",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": "text_encoder.encoder.layers.0.self_attn.q_proj",
        "lora_te_text_model_encoder_layers_0_mlp_fc1": "text_encoder.encoder.layers.0.mlp.fc1",
    }
    generator, tensors, deltas = torch.Generator().manual_seed(0), {}, {}
    weights = {f"{layer}.weight": model.parameters()[f"{layer}.weight"] for layer in layers.values()}
    for key, layer in layers.items():
        rows, columns = weights[f"{layer}.weight"].shape
        down, up = torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
        deltas[f"{layer}.weight"] = 0.5 * up @ down
    save_file(tensors, tmp_path / "k.safetensors")
    loaded = load_external(model, str(tmp_path / "k.safetensors"), CAT)
    assert loaded.moved_parameters() == weights.keys()
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with apply_edits(model, [loaded]):
        for name, weight in weights.items():
            assert torch.allclose(weight.detach() - before[name], deltas[name], atol=1e-2)
    assert all(torch.equal(weight, before[name]) for name, weight in weights.items())


def test_files_that_are_not_an_erasure_are_refused_in_one_line(model: StableDiffusion, tmp_path: Path) -> None:
    tiny.save_pipeline(tmp_path / "base")
    (tmp_path / "weights.pt").write_bytes(b"pickle")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 20)
    save_file({"model.diffusion_model.a": torch.zeros(1)}, tmp_path / "compvis.safetensors")
    save_file({"other.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    values = {k: v for k, v in load_file(next((tmp_path / "base" / "unet").glob("*.safetensors"))).items() if "conv_in.weight" in k}
    save_file({k: v[:1] for k, v in values.items()}, tmp_path / "shape.safetensors")
    for name, words in (
        ("weights.pt", "never loaded"),
        ("broken.safetensors", "cannot be read"),
        ("compvis.safetensors", "holds 1 tensors of a UNet and 0 have a place in that of tiny"),
        ("other.safetensors", "'unet.other.weight'"),
        ("shape.safetensors", "conv_in.weight is"),
        ("none", "no erasure at"),
    ):
        with pytest.raises(UserError, match=words):
            load_external(model, str(tmp_path / name), CAT)
    from erasure.loading.loader import load_model

    base = load_model(str(tmp_path / "base"))
    with pytest.raises(UserError, match="equals"):
        load_external(base, str(tmp_path / "base"), CAT)
    with pytest.raises(UserError, match="give --concept, --model, --out"):
        run_words("audit", str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match="no edit at"):
        run_words("audit", str(tmp_path / "none"))
