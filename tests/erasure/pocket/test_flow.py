"""The shipped flow transformer: it draws what it is asked, in a plain pipeline too, and methods edit it."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from erasure.concept import Concept
from erasure.edits import apply_edits
from erasure.erasing import erase
from erasure.export import export_edit
from erasure.families.base import DiffusionModel
from erasure.loading.loader import FLOW_FOLDER, load_model
from erasure.methods.uce import UCE
from erasure.pocket.canvas import STYLES
from erasure.recipes import configure_method
from eval.judges import pocket_object, pocket_style
from eval.suites.suite import load_suite


@pytest.fixture(scope="module")
def flow() -> DiffusionModel:
    return load_model("pocket-flow", device="cpu", dtype="fp32")


def test_its_weights_are_small(flow: DiffusionModel) -> None:
    assert sum(path.stat().st_size for path in FLOW_FOLDER.iterdir()) < 10e6
    assert sum(p.numel() for p in flow.denoiser.parameters()) < 5e6
    assert flow.family == "pocket-flow" and flow.guidance_kind == "classifier-free"


def test_it_draws_what_it_is_asked(flow: DiffusionModel) -> None:
    """docs/results/pocket-flow.md has all cells; here two objects in every style, with room for chance."""
    suite = load_suite("pocket")
    cells = [(style, thing) for style in STYLES for thing in ("boat", "house")]
    prompts = [suite.template.format(style=suite.styles[style], object=suite.objects[thing]) for style, thing in cells]
    images = flow.decode(flow.sample(prompts, range(len(prompts)), 20))
    styles = [score.label for score in pocket_style.PocketStyle().score(images, prompts)]
    things = [score.label for score in pocket_object.PocketObject().score(images, prompts)]
    assert sum(label == style for label, (style, _) in zip(styles, cells, strict=True)) >= 16
    assert sum(label == thing for label, (_, thing) in zip(things, cells, strict=True)) >= 14


def test_an_erased_folder_is_a_plain_pipeline(flow: DiffusionModel, tmp_path: Path) -> None:
    """With one zero token for T5 it is ours to rounding; with the pipeline's 256, which all count, it draws nearly the same."""
    concept = [Concept(name="neon", kind="style")]
    method, chosen, _ = configure_method(UCE, concept, flow.family, {})
    edit = erase(flow, chosen, method, out=tmp_path / "edit")
    export_edit(flow, edit, "folder", tmp_path / "folder")
    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path / "folder", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    prompts, noise = ["a boat in neon style", "a tree in sketch style"], flow.sample_noise([3, 4])
    options = {"num_inference_steps": 12, "guidance_scale": 4.0, "output_type": "pt", "height": 64, "width": 64}
    one, default = (pipe(prompts, latents=noise, max_sequence_length=n, **options).images for n in (1, 256))
    with apply_edits(flow, edit):
        ours = flow.decode(flow.sample(prompts, [3, 4], 12, 4.0))
    assert (ours - one).abs().max() < 1e-4
    assert (ours - default).abs().mean() < 0.05
    style = pocket_style.PocketStyle().score(torch.cat((ours, default)), prompts * 2)
    assert style[0].label != "neon" and style[1].label == "sketch"
    assert load_model(str(tmp_path / "folder"), device="cpu").family == "pocket-flow"
