"""LoRA files on models of Stable Diffusion's depth: which layers each program changes, by how much, and what the report says about it."""

import copy
import hashlib
import itertools
import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from erasure.concept import Concept
from erasure.config.choices import LoraLayout
from erasure.edits import Edit, apply_edits, deltas
from erasure.edits.external.external_edit import load_external
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.export import to_lora
from erasure.export.lora import MAX_ERROR, LoraReport, delta_of, read_lora_report
from erasure.export.lora_file import LORA_FILE
from erasure.families.parameters import canonical_name
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.uce import UCE
from tests import synthetic_edits
from tests.clients import CLIENTS, Shapes, original_layout
from tests.sd_architecture import pipeline

VAN_GOGH = [Concept(name="Van Gogh", kind="style", prompts=("a painting by {} | a painting", "{}"))]
OUTSIDE = {f"unet.{name}.weight" for name in ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")}


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def model(request: pytest.FixtureRequest) -> StableDiffusion:
    model = StableDiffusion(pipeline(request.param, small=True), request.param, "fp32")
    model.family = request.param  # otherwise inferred from the width
    return model


@dataclass(frozen=True)
class Everything:
    """An edit of all of the UNet and the text encoder, and its LoRA in both layouts."""

    edit: Edit
    folders: dict[LoraLayout, Path]
    report: LoraReport  # of kohya's layout


@pytest.fixture(scope="module")
def everything(model: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Everything:
    edit, folder = synthetic_edits.trained_edit(model, "full", "text-encoder"), tmp_path_factory.mktemp("everything")
    report = to_lora(model, edit, folder / "kohya", 8)
    to_lora(model, edit, folder / "diffusers", 8, "diffusers")
    return Everything(edit, {"kohya": folder / "kohya", "diffusers": folder / "diffusers"}, report)


def parameter_shapes(model: StableDiffusion) -> Shapes:
    return {name: p.shape for name, p in model.parameters().items()}


def relative_error(model: StableDiffusion, edit: Edit, changes: dict[str, Tensor]) -> float:
    """||delta - changes|| / ||delta|| over all that the edit moves."""
    missed, total, base = 0.0, 0.0, model.parameters()
    for name in edit.moved_parameters():
        delta = delta_of(edit, name, base[name])
        total += delta.double().square().sum().item()
        missed += (delta - changes.get(name, torch.zeros(()))).double().square().sum().item()
    return (missed / total) ** 0.5


def moved_matrices(model: StableDiffusion, edit: Edit) -> set[str]:
    """The moved parameters that are the matrix of a layer."""
    return {f"{layer}.weight" for layer in original_layout.weight_layers(parameter_shapes(model))} & edit.moved_parameters()


def expected_names(client: str, model: StableDiffusion, names_in_file: set[str]) -> set[str]:
    """All that is in the file, except for two gaps: see docs/results/exports.md."""
    if client in ("kohya merge", "sd.cpp"):
        names_in_file = names_in_file - OUTSIDE
    if client == "sd.cpp" and model.family == "sd2":
        names_in_file = {name for name in names_in_file if not any(f".self_attn.{p}_proj." in name for p in "qkv")}
    return names_in_file


EDITS = {
    "uce": synthetic_edits.low_rank_edit,
    "xattn": lambda model: synthetic_edits.trained_edit(model, "xattn"),
    "fia": synthetic_edits.pruned_edit,
}


@pytest.mark.parametrize(("kind", "layers", "moved"), [("uce", 32, 32), ("xattn", 64, 80), ("fia", 16, 16)])
def test_every_program_changes_every_edited_layer(kind: str, layers: int, moved: int, model: StableDiffusion, tmp_path: Path) -> None:
    edit = EDITS[kind](model)
    report = to_lora(model, edit, tmp_path / "lora", None if kind == "uce" else 8)
    assert (report.included, report.moved, report.notes) == (layers, moved, ())
    for rule in CLIENTS.values():
        changes = rule(load_file(tmp_path / "lora" / LORA_FILE), parameter_shapes(model))
        assert changes.keys() == moved_matrices(model, edit)
        assert relative_error(model, edit, changes) == pytest.approx(report.error, rel=1e-5, abs=1e-7)
    assert (report.error < 1e-6) == (kind == "uce")


def test_what_a_program_skips_is_reported(model: StableDiffusion, everything: Everything) -> None:
    names_in_file, report = moved_matrices(model, everything.edit), everything.report
    text = 12 * 6 if model.family == "sd1" else 23 * 6
    assert (report.included, report.moved) == (282 + text, 686 + (194 if model.family == "sd1" else 370)) and len(
        names_in_file
    ) == report.included
    tensors = load_file(everything.folders["kohya"] / LORA_FILE)
    assert sum(key.startswith("lora_unet_") and key.endswith(".alpha") for key in tensors) == 282
    for client, rule in CLIENTS.items():
        changes = rule(tensors, parameter_shapes(model))
        assert changes.keys() == expected_names(client, model, names_in_file)
        measured = relative_error(model, everything.edit, changes)
        assert measured == pytest.approx(report.error, rel=1e-5) if changes.keys() == names_in_file else measured > report.error
    notes = [
        "kohya's merge script and stable-diffusion.cpp skip 4 layers outside the UNet's blocks",
        "stable-diffusion.cpp skips 69 attention layers of the text encoder when the base is an original SD 2.x checkpoint",
    ]
    assert list(report.notes) == notes[: 1 if model.family == "sd1" else 2]


def test_diffusers_names_are_what_these_programs_skip(model: StableDiffusion, tmp_path: Path) -> None:
    """Why kohya's names are the default: 0 of 32 in ComfyUI, A1111 and kohya's merge."""
    report = to_lora(model, synthetic_edits.low_rank_edit(model), tmp_path / "lora", layout="diffusers")
    counts = {client: len(rule(load_file(tmp_path / "lora" / LORA_FILE), parameter_shapes(model))) for client, rule in CLIENTS.items()}
    assert counts == {"ComfyUI": 0, "A1111": 0, "kohya merge": 0, "sd.cpp": 32}
    assert "skip most or all of it" in report.notes[0]


def test_real_uce_reaches_all_keys_and_values(model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase(model, VAN_GOGH, UCE(), out=tmp_path / "run")
    report = to_lora(model, edit, tmp_path / "lora")
    assert report.rank == max(edit.info.notes["rank"], 2) and report.error < 1e-6 and report.included == report.moved == 32
    with apply_edits(model, [edit]):
        expected = model.sample(["a painting by Van Gogh"], [1], steps=2)
    pipe = copy.deepcopy(model.pipe)
    pipe.load_lora_weights(str(tmp_path / "lora"))
    latents = StableDiffusion(pipe, "x", "fp32").sample(["a painting by Van Gogh"], [1], steps=2)
    assert torch.allclose(latents, expected, atol=1e-4)


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_diffusers_applies_what_is_reported(layout: LoraLayout, model: StableDiffusion, everything: Everything) -> None:
    edit, report = everything.edit, everything.report
    pipe = copy.deepcopy(model.pipe)
    pipe.load_lora_weights(str(everything.folders[layout]))
    pipe.fuse_lora()
    changes, base = {}, model.parameters()
    for part, network in (("unet", pipe.unet), ("text_encoder", pipe.text_encoder)):
        for key, value in network.state_dict().items():
            name = f"{part}.{canonical_name(key).replace('.base_layer', '')}"
            if name in edit.moved_parameters():
                changes[name] = value - base[name].detach()
    assert relative_error(model, edit, changes) == pytest.approx(report.error, rel=1e-4)
    assert {name for name, change in changes.items() if change.any()} == moved_matrices(model, edit)


def test_peft_reads_the_layout_of_diffusers(model: StableDiffusion, tmp_path: Path) -> None:
    edit = synthetic_edits.trained_edit(model, "xattn")
    report = to_lora(model, edit, tmp_path / "lora", 8, "diffusers")
    tensors = {key.removeprefix("unet."): value for key, value in load_file(tmp_path / "lora" / LORA_FILE).items()}
    unet = copy.deepcopy(model.pipe.unet)
    targets = sorted({key.split(".lora_")[0] for key in tensors})
    unet.add_adapter(LoraConfig(r=report.rank, lora_alpha=report.rank, target_modules=targets))
    assert not set_peft_model_state_dict(unet, tensors, adapter_name="default").unexpected_keys
    changes = {f"unet.{name}.weight": unet.get_submodule(name).get_delta_weight("default").detach() for name in targets}
    assert relative_error(model, edit, changes) == pytest.approx(report.error, rel=1e-5)


def test_what_was_exported_reads_back(model: StableDiffusion, tmp_path: Path) -> None:
    for region in ("xattn", "text-encoder"):
        edit = synthetic_edits.trained_edit(model, region)
        to_lora(model, edit, tmp_path / region)
        loaded = load_external(model, str(tmp_path / region), VAN_GOGH)
        assert loaded.moved_parameters() == moved_matrices(model, edit)


def test_names_of_the_unet_are_those_of_diffusers_converter(everything: Everything) -> None:
    ours, theirs = (load_file(everything.folders[layout] / LORA_FILE) for layout in ("kohya", "diffusers"))
    theirs = convert_state_dict_to_kohya({key: value for key, value in theirs.items() if key.startswith("unet.")})
    assert {key for key in ours if key.startswith("lora_unet_")} == theirs.keys()
    assert all(torch.equal(ours[key].float(), theirs[key].float()) for key in theirs)


def test_the_metadata_describes_the_file(model: StableDiffusion, tmp_path: Path) -> None:
    report = to_lora(model, synthetic_edits.low_rank_edit(model, rank=5), tmp_path / "lora")
    (tmp_path / "neighbor").write_text("")
    assert stat.S_IMODE((tmp_path / "lora" / LORA_FILE).stat().st_mode) == stat.S_IMODE((tmp_path / "neighbor").stat().st_mode)
    tensors = load_file(tmp_path / "lora" / LORA_FILE)
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert {value.item() for key, value in tensors.items() if key.endswith(".alpha")} == {5.0}
    with safe_open(tmp_path / "lora" / LORA_FILE, "pt") as file:
        metadata = file.metadata()
    sd2 = model.family == "sd2"
    assert metadata["ss_base_model_version"] == ("sd_v2_v" if sd2 else "sd_v1") and metadata["ss_v2"] == str(sd2)
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"], metadata["ss_network_module"]) == ("5", "5.0", "networks.lora")
    assert metadata["modelspec.architecture"] == ("stable-diffusion-v2-768-v/lora" if sd2 else "stable-diffusion-v1/lora")
    assert metadata["modelspec.title"] == "Van Gogh, erased with uce" and metadata["ss_output_name"].startswith("van-gogh-uce-")
    data = (tmp_path / "lora" / LORA_FILE).read_bytes()
    body = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert metadata["sshs_model_hash"] == body and metadata["modelspec.hash_sha256"] == f"0x{body}"
    assert json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"] == metadata
    assert read_lora_report(tmp_path / "lora") == report
    to_lora(model, synthetic_edits.low_rank_edit(model, rank=5), tmp_path / "again")
    assert (tmp_path / "again" / LORA_FILE).read_bytes() == data


def test_the_rank_is_the_requested_one_or_reported(model: StableDiffusion, tmp_path: Path) -> None:
    folders = (tmp_path / str(i) for i in itertools.count())

    def ranks(edit: Edit, rank: int | None) -> tuple[LoraReport, set[int]]:
        folder = next(folders)
        report = to_lora(model, edit, folder, rank)
        return report, {len(value) for key, value in load_file(folder / LORA_FILE).items() if "lora_down" in key}

    uce = synthetic_edits.low_rank_edit(model, rank=20)
    full_rank, ranks_in_file = ranks(uce, None)
    assert full_rank.rank == 20 and ranks_in_file == {20} and full_rank.error < 1e-6 and full_rank.notes == ()
    cut, ranks_in_file = ranks(uce, 16)
    assert cut.rank == 16 and ranks_in_file == {16} and 0.05 < cut.error < 0.8 and cut.notes == ()
    higher, ranks_in_file = ranks(uce, 30)
    assert higher.rank == 20 and ranks_in_file == {20} and "rank 30 was asked for; this edit has rank 20" in higher.notes[0]
    conv = {name: model.parameters()[name].detach().half() + 0.01 for name in ("unet.conv_in.weight", "unet.conv_out.weight")}
    full, ranks_in_file = ranks(synthetic_edits.make_edit(model, conv), 24)  # conv_out has 4 rows and no higher
    assert full.rank == 24 and ranks_in_file == {24}
    lowest, ranks_in_file = ranks(uce, 1)
    assert lowest.rank == 2 and ranks_in_file == {2} and "padded to 2" in lowest.notes[0]
    for rank, words in ((0, "at least 1"), (-3, "at least 1"), (5000, "give at most")):
        with pytest.raises(UserError, match=words):
            to_lora(model, uce, tmp_path / "none", rank)
    assert not (tmp_path / "none").exists()


def test_rank_one_is_misread_by_one_program(model: StableDiffusion, tmp_path: Path) -> None:
    """Without the row of zeros, stable-diffusion.cpp divides alpha by the layer's width."""
    edit = synthetic_edits.low_rank_edit(model, rank=1)
    to_lora(model, edit, tmp_path / "lora")
    padded = load_file(tmp_path / "lora" / LORA_FILE)
    bare = {key: value[:1] if "lora_down" in key else value[:, :1] if "lora_up" in key else value / 2 for key, value in padded.items()}
    for client, rule in CLIENTS.items():
        assert relative_error(model, edit, rule(padded, parameter_shapes(model))) < 1e-6
        assert (relative_error(model, edit, rule({k: v.contiguous() for k, v in bare.items()}, parameter_shapes(model))) > 0.9) == (
            client == "sd.cpp"
        )


def test_a_loss_above_the_limit_is_reported(model: StableDiffusion, tmp_path: Path) -> None:
    edit = synthetic_edits.trained_edit(model, "xattn", noise=1.0)
    unfaithful = to_lora(model, edit, tmp_path / "a", 4)
    assert not unfaithful.is_faithful and unfaithful.describe().startswith(
        f"carries 64 of 80 tensors, error {unfaithful.error:.2g} at rank 4 (more than 0.2); "
    )
    assert "a higher --rank loses less; use --format checkpoint or folder for all of it" in unfaithful.describe()
    assert read_lora_report(tmp_path / "a").describe() == unfaithful.describe()
    assert "use --format folder for all of it" in replace(unfaithful, whole="folder").describe()
    faithful = to_lora(model, synthetic_edits.trained_edit(model, "xattn", noise=0.01), tmp_path / "b", 16)
    assert faithful.is_faithful and faithful.full_rank_error < faithful.error < MAX_ERROR and "checkpoint" not in faithful.describe()
    base = model.parameters()
    biases = {name: base[name].detach().half() + (1.0 if name.endswith("bias") else 0.0) for name in model.parameter_names("xattn")}
    without_biases = to_lora(model, synthetic_edits.make_edit(model, biases), tmp_path / "c")
    assert not without_biases.is_faithful and without_biases.full_rank_error > 0.99 and "--rank" not in without_biases.describe()


def test_embeddings_and_norms_are_not_in_a_lora(model: StableDiffusion, tmp_path: Path) -> None:
    table = "text_encoder.embeddings.token_embedding.weight"
    with pytest.raises(UserError, match="nothing a LoRA could hold"):
        to_lora(model, synthetic_edits.make_edit(model, {table: model.parameters()[table].detach().half() + 1}), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_zeroed_entries_are_measured_against_zero(model: StableDiffusion, tmp_path: Path) -> None:
    edit = synthetic_edits.pruned_edit(model)
    name = next(iter(edit.moved_parameters()))
    delta = delta_of(edit, name, model.parameters()[name])
    weight_of_base = model.parameters()[name].detach().float()
    assert (
        torch.equal(weight_of_base + delta, deltas.apply_delta(edit.tensors, name, weight_of_base)) and (delta != 0).float().mean() < 0.03
    )
    assert to_lora(model, edit, tmp_path / "lora").error > 0.5


@pytest.fixture(autouse=True)
def unchanged(model: StableDiffusion) -> Iterator[None]:
    """An export leaves the model as it was."""
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    before = model.parameters()[name].detach().clone()
    yield
    assert torch.equal(before, model.parameters()[name].detach())
