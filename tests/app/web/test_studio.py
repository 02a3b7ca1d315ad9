"""The studio without a page: on a tiny model, what it refuses and what it returns."""

import shutil
from pathlib import Path

import pytest
import torch

from app.commands.studio import StudioCommand, check_login
from app.jobs import queue
from app.web import downloads, images
from app.web.studio import MAX_QUEUED, Studio
from erasure.concept import Concept
from erasure.edits import Edit
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.export import to_lora
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.esd import ESD
from eval.records.scores import LabelScore, Scores

CAT = [Concept(name="cat", kind="object", prompts=("{}",))]


@pytest.fixture
def studio(model: StableDiffusion, tmp_path: Path) -> Studio:
    erase(model, CAT, ESD(steps=2, batch=2, trajectories=2, trajectory_steps=2, lr=1e-2), out=tmp_path / "runs" / "cat")
    return Studio(model, tmp_path / "runs")


def test_compare_starts_from_the_same_noise_and_leaves_the_model(studio: Studio) -> None:
    before = studio.model.fingerprint()
    *_, comparison = studio.compare("a cat", ["esd (cat)"], 3, 2, 3, 4.0, 1.0)
    assert comparison.base.shape == comparison.erased.shape == (2, 3, 16, 16)
    assert comparison.seeds == [3, 4]
    assert comparison.difference(0).max() > 0
    assert studio.model.fingerprint() == before
    *_, nothing = studio.compare("a cat", ["esd (cat)"], 3, 2, 3, 4.0, 0.0)
    assert torch.equal(nothing.base, nothing.erased)
    assert torch.equal(nothing.base, comparison.base)
    done = studio.model.cost.unet_forwards
    list(studio.compare("a cat", [], 3, 2, 3, 4.0, 1.0))
    assert studio.model.cost.unet_forwards == done  # the base's images are cached


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (("x" * 501, [], 0, 1, 3, 4.0, 1.0), "500 characters"),
        (("a", ["esd (dog)"], 0, 1, 3, 4.0, 1.0), "Did you mean 'esd \\(cat\\)'"),
        (("a", [], 0, 9, 3, 4.0, 1.0), "images must lie between"),
        (("a", [], 0, 1, 0, 4.0, 1.0), "steps must lie between"),
        (("a", [], 0, 1, 3, float("nan"), 1.0), "guidance must lie between"),
        (("a", [], -1, 1, 3, 4.0, 1.0), "a seed is a whole number from 0 to"),
    ],
)
def test_values_out_of_range_are_one_line(studio: Studio, values: tuple, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        list(studio.compare(*values))


def test_erasing_is_queued_once_and_only_if_it_can_work(studio: Studio) -> None:
    folder = studio.queue_erasure("cat; dog", "object", "", "esd", {"steps": 3}, 0, "")
    assert studio.queue_erasure("cat; dog", "object", "", "esd", {"steps": 3}, 0, "") == folder
    assert queue.read_progress(folder).state == "waiting"
    assert studio.job_folder(folder.name) == folder
    for name in ("../runs", "", folder.name + "/.."):
        with pytest.raises(UserError, match="unknown job"):
            studio.job_folder(name)
    with pytest.raises(UserError, match="unknown field"):
        studio.queue_erasure("cat", "object", "", "esd", {"stepz": 3}, 0, "")
    with pytest.raises(UserError, match="needs a name"):
        studio.queue_erasure(" ", "object", "", "esd", {}, 0, "")
    with pytest.raises(UserError, match="choose an edit"):
        studio.queue_audit([], "pocket", "smoke")
    for seed in range(1, MAX_QUEUED):
        studio.queue_erasure("cat", "object", "", "esd", {}, seed, "")
    with pytest.raises(UserError, match="are waiting already"):
        studio.queue_erasure("cat", "object", "", "esd", {}, 99, "")


def test_downloads_are_the_formats_an_edit_can_take(studio: Studio, tmp_path: Path) -> None:
    job = studio.root / "jobs" / "x"
    erase(studio.model, CAT, ESD(steps=2, batch=2, trajectories=2, trajectory_steps=2, lr=1e-2), out=job / "edit")
    for export_format in ("edit", "lora", "folder", "checkpoint"):
        assert downloads.make_zip(studio, job, export_format).stat().st_size > 1000
        assert downloads.describe_loss(job, export_format) == ""
    shutil.rmtree(job / "downloads" / "lora")
    to_lora(studio.model, Edit.load(job / "edit"), job / "downloads" / "lora", rank=2)
    assert "carries" in downloads.describe_loss(job, "lora") and "--format checkpoint" in downloads.describe_loss(job, "lora")
    with pytest.raises(UserError, match="text encoder"):
        downloads.make_zip(studio, job, "text-encoder")
    with pytest.raises(UserError, match="unknown format"):
        downloads.make_zip(studio, job, "../../x")


def test_text_is_never_markup() -> None:
    hostile = Scores(style=LabelScore(label="<script>alert(1)</script>", p=0.5))
    assert "<script>" not in images.render_score_cards((hostile, hostile))


def test_an_open_address_needs_a_login() -> None:
    with pytest.raises(UserError, match="can be reached from other machines"):
        check_login(StudioCommand(host="0.0.0.0"))
    with pytest.raises(UserError, match="user:password"):
        check_login(StudioCommand(auth="ada"))
    assert check_login(StudioCommand(host="0.0.0.0", auth="ada:secret")) == ("ada", "secret")
    assert check_login(StudioCommand()) is None


def test_the_safety_checker_blurs_images(studio: Studio, tmp_path: Path) -> None:
    """The real class, tiny, with a concept that everything is close to."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    from app.web.safety import load_safety_checker

    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    network = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    torch.nn.init.constant_(network.concept_embeds_weights, -2.0)  # any similarity is above the threshold
    network.save_pretrained(tmp_path / "checker")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path / "checker")
    studio.checker = load_safety_checker(str(tmp_path / "checker"))
    *_, comparison = studio.compare("a cat", ["esd (cat)"], 3, 2, 3, 4.0, 1.0)
    assert comparison.hidden == (0, 1)
    sharp, soft = (images.to_display(comparison.base[0], blurred=blurred).convert("L") for blurred in (False, True))
    edges = [sum(abs(a - b) for a, b in zip(image.tobytes(), image.tobytes()[1:], strict=False)) for image in (sharp, soft)]
    assert edges[1] < 0.3 * edges[0]
    with pytest.raises(UserError, match="cannot be loaded"):
        load_safety_checker(str(tmp_path / "none"))
