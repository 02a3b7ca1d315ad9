"""LoRA files of SDXL, Stable Diffusion 3, FLUX.1 and FLUX.2-klein: which layers diffusers and other programs change, in each layout.

diffusers is run, and outputs are compared: it loads some layouts as nothing without an error. Other programs are rules of tests/clients.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from erasure.config.choices import LoraLayout
from erasure.edits import Edit, apply_edits
from erasure.errors import UserError
from erasure.export import to_lora
from erasure.export.lora import LoraReport, delta_of, lora_targets_of
from erasure.export.lora_file import LORA_FILE, build_lora_metadata
from erasure.export.lora_names import default_layout, fuse_factors
from erasure.export.model_card import describe_lora_usage
from erasure.families.base import DiffusionModel
from tests import synthetic_edits
from tests.clients import comfyui_families, kohya_families
from tests.tiny_models import BUILD

FAMILIES = ("sdxl", "sd3", "flux-dev", "klein-base")
LAYOUTS: tuple[LoraLayout, ...] = ("kohya", "diffusers")
DIFFUSERS_ONLY = "this layout is for diffusers and PEFT; ComfyUI, A1111 and kohya's tools skip most or all of it"
WITH_COMFYUI, COMFYUI_ONLY = (
    "this layout is for diffusers, PEFT and ComfyUI; kohya's tools skip it",
    "this layout is for ComfyUI and kohya's tools",
)


@dataclass(frozen=True)
class Exported:
    """An edit of every matrix of a model, and its LoRA in both layouts."""

    model: DiffusionModel
    edit: Edit
    folders: dict[LoraLayout, Path]
    reports: dict[LoraLayout, LoraReport]


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model, folder = BUILD[request.param](), tmp_path_factory.mktemp(request.param)
    edit = synthetic_edits.edit_of_layers(model, lora_targets_of(model))
    folders: dict[LoraLayout, Path] = {layout: folder / layout for layout in LAYOUTS}
    return Exported(model, edit, folders, {layout: to_lora(model, edit, folders[layout], 3, layout) for layout in LAYOUTS})


@torch.no_grad()
def prediction_of(model: DiffusionModel) -> Tensor:
    """What the denoiser makes of fixed noise and two prompts, text encoders included."""
    x_t = torch.randn((2, *model.latent_shape), generator=torch.Generator().manual_seed(0))
    return model.predict_native(x_t, torch.tensor([600, 600]), model.encode(["a cat", "a dog"]), model.default_guidance)


def loss_in_diffusers(name: str, edit: Edit, folder: Path) -> float:
    """||prediction with the LoRA - edited prediction|| / ||edited prediction - base's||: 0 if all is applied, 1 if nothing is."""
    model = BUILD[name]()
    base = prediction_of(model)
    with apply_edits(model, [edit]):
        edited = prediction_of(model)
    assert (edited - base).norm() > 1e-3 * base.norm()
    model.pipe.load_lora_weights(str(folder))
    return ((prediction_of(model) - edited).norm() / (edited - base).norm()).item()


def moved_by_diffusers(exported: Exported, layout: LoraLayout) -> dict[str, Tensor]:
    """What diffusers changes, by parameter."""
    model = copy.copy(exported.model)
    model.pipe = copy.deepcopy(exported.model.pipe)
    model.pipe.load_lora_weights(str(exported.folders[layout]))
    model.pipe.fuse_lora(components=list(model.networks))
    base = exported.model.parameters()
    changes = {name: p.detach() - base[name].detach() for name, p in model.parameters().items()}
    return {name: change for name, change in changes.items() if change.any()}


def relative_error(exported: Exported, changes: dict[str, Tensor]) -> float:
    """The largest ||delta - change|| / ||delta|| of what a program changes."""
    base = exported.model.parameters()
    deltas = {name: delta_of(exported.edit, name, base[name]) for name in changes}
    return max(((deltas[name] - change).norm() / deltas[name].norm()).item() for name, change in changes.items())


def test_the_default_layout_serves_diffusers_and_comfyui(exported: Exported, request: pytest.FixtureRequest) -> None:
    layout = default_layout(exported.model.family)
    assert layout == ("kohya" if exported.model.family == "sdxl" else "diffusers")
    changes = moved_by_diffusers(exported, layout)
    assert changes.keys() == exported.edit.moved_parameters() and relative_error(exported, changes) < 2e-3
    name = next(name for name in FAMILIES if BUILD[name]().family == exported.model.family)
    assert loss_in_diffusers(name, exported.edit, exported.folders[layout]) < 3e-3
    to_lora(exported.model, exported.edit, (folder := exported.folders[layout].parent / "default"), 3)
    assert (folder / LORA_FILE).read_bytes() == (exported.folders[layout] / LORA_FILE).read_bytes()


READ_BY_DIFFUSERS = {  # regions whose layers it finds under kohya's names
    "flux-dev": ("xattn", "selfattn", "ff-out", "text-encoder"),
    "klein-base": ("xattn", "selfattn", "ff-out", "text-proj"),
    "sdxl": ("full", "text-encoder"),
}


@pytest.mark.parametrize(("layout", "name"), [("kohya", name) for name in READ_BY_DIFFUSERS] + [("diffusers", "sdxl")])
@pytest.mark.parametrize("regions", [None, ("xattn-kv",)], ids=["many", "keys and values"])
def test_diffusers_applies_the_other_layout(layout: LoraLayout, name: str, regions: tuple[str, ...] | None, tmp_path: Path) -> None:
    """Of q, k, v the last case moves two: the fused matrix has zeros for the third."""
    model = BUILD[name]()
    names = {parameter for region in regions or READ_BY_DIFFUSERS[name] for parameter in model.parameter_names(region)}
    edit = synthetic_edits.edit_of_layers(model, names & lora_targets_of(model))
    to_lora(model, edit, tmp_path / "lora", layout=layout)
    assert loss_in_diffusers(name, edit, tmp_path / "lora") < 3e-3


@pytest.mark.parametrize("name", FAMILIES[:3])
def test_diffusers_applies_text_encoders_alone(name: str, tmp_path: Path) -> None:
    model = BUILD[name]()
    edit = synthetic_edits.edit_of_layers(model, lora_targets_of(model) & set(model.parameter_names("text-encoder")), size=0.3)
    to_lora(model, edit, tmp_path / "lora")
    assert loss_in_diffusers(name, edit, tmp_path / "lora") < 5e-3


def test_a_rank_cut_loses_what_the_report_says(tmp_path: Path) -> None:
    model = BUILD["sd3"]()
    edit = synthetic_edits.trained_edit(model, "xattn", noise=0.5)
    report = to_lora(model, edit, tmp_path / "lora", 4)
    assert not report.is_faithful and 0.01 < loss_in_diffusers("sd3", edit, tmp_path / "lora") < 1


UNDER_KOHYA = {  # what diffusers makes of an edit of everything
    "sdxl": lambda name: True,
    "sd3": lambda name: False,
    "flux2-klein": lambda name: "modulation" not in name and "norm_out" not in name,
}


def test_what_diffusers_skips_of_kohyas_names(exported: Exported) -> None:
    if exported.model.family == "flux":
        with pytest.raises(AssertionError):
            moved_by_diffusers(exported, "kohya")
        return
    changes, reads = moved_by_diffusers(exported, "kohya"), UNDER_KOHYA[exported.model.family]
    assert changes.keys() == {name for name in exported.edit.moved_parameters() if reads(name)}
    assert not changes or relative_error(exported, changes) < 2e-3


def test_flux_layers_outside_the_blocks_are_lost_under_kohyas_names(tmp_path: Path) -> None:
    model = BUILD["flux-dev"]()
    edit = synthetic_edits.edit_of_layers(model, lora_targets_of(model) & set(model.parameter_names("text-proj")))
    report = to_lora(model, edit, tmp_path / "lora", layout="kohya")
    assert loss_in_diffusers("flux-dev", edit, tmp_path / "lora") == 1
    assert report.notes[1] == "diffusers skips all of it without a message; the layout 'diffusers' has them for it"


SKIPPED: dict[tuple[str, str, LoraLayout], Callable[[str], bool]] = {  # what a program leaves out of an edit of everything
    ("ComfyUI", "sdxl", "kohya"): lambda name: False,
    ("ComfyUI", "sdxl", "diffusers"): lambda name: "text_projection" in name or ".to_" in name,
    ("ComfyUI", "sd3", "kohya"): lambda name: False,
    ("ComfyUI", "sd3", "diffusers"): lambda name: "text_projection" in name,
    ("ComfyUI", "flux", "kohya"): lambda name: False,
    ("ComfyUI", "flux", "diffusers"): lambda name: False,
    ("ComfyUI", "flux2-klein", "kohya"): lambda name: False,
    ("ComfyUI", "flux2-klein", "diffusers"): lambda name: "_modulation" in name or "time_guidance" in name,
    ("kohya", "sdxl", "kohya"): lambda name: "text_projection" in name or ("_block" not in name and name.startswith("unet.")),
    ("kohya", "sd3", "kohya"): lambda name: "text_projection" in name,
    ("kohya", "flux", "kohya"): lambda name: False,
    ("kohya", "flux2-klein", "kohya"): lambda name: "transformer_blocks" not in name,
}
RULES = {"ComfyUI": comfyui_families.apply_lora, "kohya": kohya_families.apply_lora}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("program", RULES)
def test_what_other_programs_change(program: str, layout: LoraLayout, exported: Exported) -> None:
    shapes = {name: p.shape for name, p in exported.model.parameters().items()}
    changes = RULES[program](load_file(exported.folders[layout] / LORA_FILE), shapes)
    skips = SKIPPED.get((program, exported.model.family, layout), lambda name: True)
    assert changes.keys() == {name for name in exported.edit.moved_parameters() if not skips(name)}
    assert not changes or relative_error(exported, changes) < 2e-3


NOTES = {
    ("sdxl", "kohya"): [
        "kohya's merge script skips 6 layers outside the UNet's blocks",
        "kohya's tools skip 1 projection of text encoders",
    ],
    ("sdxl", "diffusers"): [DIFFUSERS_ONLY],
    ("sd3", "kohya"): [f"{COMFYUI_ONLY}; diffusers skips all of it without a message", "kohya's tools skip 2 projections of text encoders"],
    ("sd3", "diffusers"): [WITH_COMFYUI, "ComfyUI and kohya's tools skip 2 projections of text encoders"],
    ("flux", "kohya"): [
        COMFYUI_ONLY,
        "diffusers skips 10 layers outside the blocks; the layout 'diffusers' has them for it",
        "diffusers cannot load it: it knows single blocks of this layout at a width of 3072 alone, not 32",
    ],
    ("flux", "diffusers"): [WITH_COMFYUI],
    ("flux2-klein", "kohya"): [
        f"{COMFYUI_ONLY} (musubi-tuner)",
        "musubi-tuner skips 9 layers outside the blocks",
        "diffusers skips 4 layers outside the blocks; the layout 'diffusers' has them for it",
    ],
    ("flux2-klein", "diffusers"): [
        WITH_COMFYUI,
        "ComfyUI skips 5 layers of modulation and time embedding; the layout 'kohya' has them for it",
    ],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_report_says_what_is_skipped(layout: LoraLayout, exported: Exported) -> None:
    report = exported.reports[layout]
    assert list(report.notes) == NOTES[exported.model.family, layout]
    assert report.included == report.moved == len(exported.edit.moved_parameters()) and report.error < 2e-3


def test_a_layout_that_no_program_reads_is_refused(tmp_path: Path) -> None:
    model = BUILD["sd3"]()
    model.family = "pocket-flow"
    edit = synthetic_edits.edit_of_layers(model, ["transformer.context_embedder.weight"])
    with pytest.raises(UserError, match=r"no program that reads LoRAs of the layout 'kohya' loads pocket-flow.*use 'diffusers'"):
        to_lora(model, edit, tmp_path / "lora", layout="kohya")
    to_lora(model, edit, tmp_path / "lora")
    assert loss_in_diffusers("sd3", edit, tmp_path / "lora") < 3e-3


def test_a_fused_matrix_changes_as_its_parts_do() -> None:
    """[B_q A_q; 0; B_v A_v], at one rank for every part."""
    (b_q, b_v), (a_q, a_v) = torch.randn(2, 5, 3), torch.randn(2, 3, 7)
    up, down = fuse_factors([(b_q, a_q), None, (b_v, a_v)], [torch.Size((5, 7)), torch.Size((4, 7)), torch.Size((5, 7))])
    assert up.shape == (14, 9) and down.shape == (9, 7)
    assert torch.allclose(up @ down, torch.cat((b_q @ a_q, torch.zeros(4, 7), b_v @ a_v)), atol=1e-5)


def test_a_text_encoder_that_diffusers_cannot_tell_is_reported(tmp_path: Path) -> None:
    model = BUILD["flux-dev"]()
    edit = synthetic_edits.edit_of_layers(model, ["text_encoder.encoder.layers.0.self_attn.q_proj.weight"], size=1.0)
    report = to_lora(model, edit, tmp_path / "kohya", layout="kohya")
    assert report.notes[-1].startswith("diffusers cannot load it: in this layout it needs an output or MLP layer of the text_encoder")
    with pytest.raises(ValueError, match="infer state dict type"):
        loss_in_diffusers("flux-dev", edit, tmp_path / "kohya")
    to_lora(model, edit, tmp_path / "diffusers")
    assert loss_in_diffusers("flux-dev", edit, tmp_path / "diffusers") < 3e-3


PROGRAMS = {
    ("sdxl", "kohya"): ["diffusers", "ComfyUI", "kohya's sd-scripts"],
    ("sdxl", "diffusers"): ["diffusers", "other programs"],
    ("sd3", "diffusers"): ["diffusers", "ComfyUI", "kohya's tools"],
    ("sd3", "kohya"): ["ComfyUI", "diffusers"],
    ("flux", "diffusers"): ["diffusers", "ComfyUI", "kohya's tools"],
    ("flux", "kohya"): ["ComfyUI", "diffusers", "kohya's sd-scripts"],
    ("flux2-klein", "diffusers"): ["diffusers", "ComfyUI", "kohya's tools"],
    ("flux2-klein", "kohya"): ["ComfyUI", "diffusers"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_card_names_programs_that_read_the_layout(layout: LoraLayout, exported: Exported) -> None:
    usage = describe_lora_usage(exported.edit, layout)
    assert [program for program, _ in usage] == PROGRAMS[exported.model.family, layout]
    assert not any("--layout" in how for _, how in usage)


METADATA = {
    "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", "16x16", "epsilon", "networks.lora"),
    "sd3": ("5-medium", "stable-diffusion-3-5-medium/lora", "16x16", None, "networks.lora_sd3"),
    "flux": ("flux1", "flux-1-dev/lora", "32x32", None, "networks.lora_flux"),
    "flux2-klein": ("flux_2_klein_4b", "flux-2-klein-4b/lora", "32x32", None, "networks.lora_flux_2"),
}


def test_the_metadata_names_the_base(exported: Exported) -> None:
    with safe_open(exported.folders["kohya"] / LORA_FILE, "pt") as file:
        metadata = file.metadata()
    keys = ("ss_base_model_version", "modelspec.architecture", "modelspec.resolution", "modelspec.prediction_type", "ss_network_module")
    assert tuple(metadata.get(key) for key in keys) == METADATA[exported.model.family] and metadata["ss_v2"] == "False"


def test_the_metadata_of_variants() -> None:
    schnell, sd3 = BUILD["flux-schnell"](), BUILD["sd3"]()
    edit = synthetic_edits.edit_of_layers(schnell, ["transformer.x_embedder.weight"])
    assert build_lora_metadata(schnell, edit, 2, "diffusers")["modelspec.architecture"] == "flux-1-schnell/lora"
    for settings, architecture in (
        ({"dual_attention_layers": ()}, "stable-diffusion-3-5-large/lora"),
        ({"dual_attention_layers": (), "qk_norm": None}, "stable-diffusion-3-medium/lora"),
    ):
        sd3.pipe.transformer.register_to_config(**settings)
        assert build_lora_metadata(sd3, edit, 2, "diffusers")["modelspec.architecture"] == architecture
    sd3.family = "pocket-flow"
    assert build_lora_metadata(sd3, edit, 2, "diffusers")["modelspec.architecture"] == "pocket-flow/lora"
