"""The studio without a page: on a tiny model, what it makes, what it refuses, and what it keeps."""

import io
import json
import shutil
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.commands.studio import StudioCommand, check_api_key, check_login
from app.jobs import queue
from app.web import downloads, images
from app.web.comparison import CompareRequest, EditChoice, parse_link
from app.web.models import StudioModels
from app.web.result_view import render_result, render_sheet
from app.web.results import Results
from app.web.sampler import Stopped
from app.web.studio import Studio
from erasure.concept import Concept
from erasure.edits import Edit
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.export import to_lora
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.esd import ESD
from eval.records.scores import LabelScore, Scores

CAT = [Concept(name="cat", kind="object", prompts=("{}",))]
SHORT_ESD = ESD(steps=2, batch=2, trajectories=2, trajectory_steps=2, lr=1e-2)
ONE = CompareRequest(model="tiny", prompt="a cat", edits=(EditChoice("cat (ESD)"),), seed=3, count=2, steps=3)


@pytest.fixture
def studio(model: StableDiffusion, tmp_path: Path) -> Studio:
    erase(model, CAT, SHORT_ESD, out=tmp_path / "runs" / "cat")
    return Studio(StudioModels.of(model), tmp_path / "runs")


def test_compare_starts_from_the_same_noise_and_leaves_the_model(studio: Studio, model: StableDiffusion) -> None:
    before = model.fingerprint()
    first, comparison = studio.sampler.compare(ONE)
    assert first.seeds == [3] and comparison.seeds == [3, 4]
    assert comparison.base.shape == comparison.erased.shape == (2, 3, 16, 16)
    assert comparison.difference(0).max() > 0
    assert model.fingerprint() == before
    *_, nothing = studio.sampler.compare(replace(ONE, edits=(EditChoice("cat (ESD)", 0.0),)))
    assert torch.equal(nothing.base, nothing.erased)
    assert torch.equal(nothing.base, comparison.base)


def test_settings_that_were_tried_come_back_at_once(studio: Studio, model: StableDiffusion) -> None:
    *_, comparison = studio.sampler.compare(ONE)
    done = model.cost.unet_forwards
    *_, again = studio.sampler.compare(ONE)
    assert model.cost.unet_forwards == done
    assert torch.equal(again.erased, comparison.erased)


def test_each_edit_has_its_own_strength(studio: Studio, model: StableDiffusion) -> None:
    erase(model, [Concept(name="dog", kind="object", prompts=("{}",))], SHORT_ESD, out=studio.root / "dog")
    both = replace(ONE, edits=(EditChoice("cat (ESD)", 1.0), EditChoice("dog (ESD)", 0.0)))
    *_, one = studio.sampler.compare(ONE)
    *_, with_nothing = studio.sampler.compare(both)
    *_, with_half = studio.sampler.compare(replace(both, edits=(EditChoice("cat (ESD)", 1.0), EditChoice("dog (ESD)", 0.5))))
    assert torch.equal(with_nothing.erased, one.erased)
    assert not torch.equal(with_half.erased, one.erased)


def test_a_strip_and_a_grid_hold_the_images_of_comparisons(studio: Studio) -> None:
    *_, comparison = studio.sampler.compare(ONE)
    (strip,) = studio.sampler.strengths(ONE)
    assert strip.columns == ("base", "strength 0.5", "strength 1", "strength 1.5")
    assert torch.equal(strip.images[0][0], comparison.base[0]) and torch.equal(strip.images[0][2], comparison.erased[0])
    *_, grid = studio.sampler.grid(["a cat", "", "a dog"], ONE)
    assert grid.rows == ("a cat", "a dog") and grid.columns == ("base", "cat (ESD)")
    assert torch.equal(grid.images[0][0], comparison.base[0]) and torch.equal(grid.images[0][1], comparison.erased[0])
    with pytest.raises(UserError, match="choose an edit first"):
        next(studio.sampler.strengths(replace(ONE, edits=())))
    with pytest.raises(UserError, match="a grid takes 1 to 8 prompts"):
        next(studio.sampler.grid(["  "], ONE))


def test_stop_ends_the_sampling_and_leaves_the_base(studio: Studio, model: StableDiffusion) -> None:
    before, stop = model.fingerprint(), threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        list(studio.sampler.compare(ONE, stop))
    assert model.fingerprint() == before
    stop.clear()
    assert len(list(studio.sampler.compare(ONE, stop))) == 2


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"prompt": "x" * 501}, "500 characters"),
        ({"edits": (EditChoice("dog (ESD)"),)}, "Did you mean 'cat \\(ESD\\)'"),
        ({"edits": (EditChoice("cat (ESD)", 9.0),)}, "strength must lie between"),
        ({"edits": (EditChoice("cat (ESD)"),) * 7}, "at most 6 edits can be compared at once, here are 7"),
        ({"count": 9}, "images must lie between"),
        ({"steps": 0}, "steps must lie between"),
        ({"guidance": float("nan")}, "guidance must lie between"),
        ({"seed": -1}, "a seed is a whole number from 0 to"),
        ({"model": "pocket"}, "unknown model 'pocket'"),
    ],
)
def test_values_out_of_range_are_one_line(studio: Studio, changes: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        list(studio.sampler.compare(replace(ONE, **changes)))


def test_a_link_restores_everything() -> None:
    from urllib.parse import parse_qs

    request = CompareRequest(model="tiny", prompt="a 5*b & c", edits=(EditChoice("x*y (ESD)", 0.5), EditChoice("z")), seed=2**62, steps=7)
    query = parse_qs(request.link())
    assert parse_link({key: values[0] for key, values in query.items()}, query["edits"], ONE) == request
    assert parse_link({}, [], ONE) == ONE
    with pytest.raises(UserError, match="this link cannot be read"):
        parse_link({"prompt": "a", "count": "many"}, [], ONE)
    with pytest.raises(UserError, match="images must lie between"):
        parse_link({"prompt": "a", "count": "99"}, [], ONE)


def test_a_download_holds_every_image_and_the_settings(studio: Studio) -> None:
    *_, comparison = studio.sampler.compare(ONE)
    result = studio.results.add(ONE, comparison)
    archive = zipfile.ZipFile(io.BytesIO(result.as_zip()))
    names = {f"seed-{seed}-{side}.png" for seed in (3, 4) for side in ("before", "after", "difference")}
    assert set(archive.namelist()) == names | {"settings.json", "all.png"}
    assert json.loads(archive.read("settings.json"))["edits"] == [{"name": "cat (ESD)", "strength": 1.0}]
    assert archive.read("seed-4-after.png") == images.to_png(images.to_image(comparison.erased[1]))
    (strip,) = studio.sampler.strengths(ONE)
    assert len(zipfile.ZipFile(io.BytesIO(studio.results.add(ONE, strip).as_zip())).namelist()) == 6
    for name in ("9-before", "0-sideways", "x", "0-before-1"):
        with pytest.raises(UserError, match="no image"):
            result.image(name)


def test_old_results_leave_memory(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, comparison = studio.sampler.compare(ONE)
    monkeypatch.setattr("app.web.results.MAX_BYTES", 5 * comparison.base.nbytes)
    results = Results()
    ids = [results.add(ONE, comparison).id for _ in range(9)]
    assert [result.id for result in results.known(ids)] == ids[-2:]
    with pytest.raises(UserError, match="left memory"):
        results.get(ids[0])


def test_text_of_visitors_is_never_markup(studio: Studio, model: StableDiffusion) -> None:
    hostile = replace(ONE, prompt="<script>alert(1)</script>")
    *_, comparison = studio.sampler.compare(hostile)
    label = LabelScore(label="<b>x</b>", p=0.5)
    comparison = replace(comparison, scores=[(Scores(style=label, object=label),) * 2] * 2)
    page = render_result(studio.results.add(hostile, comparison), studio.models.get("tiny"))
    assert "<script>" not in page and "<b>x" not in page and "&lt;script&gt;" in page
    *_, grid = studio.sampler.grid([hostile.prompt], hostile)
    assert "<script>" not in render_sheet(studio.results.add(hostile, grid))


def test_erasing_is_queued_once_and_only_if_it_can_work(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = studio.jobs
    folder = jobs.queue_erasure("tiny", "cat; dog", "object", "", "esd", {"steps": 3}, 0, "")
    assert jobs.queue_erasure("tiny", "cat; dog", "object", "", "esd", {"steps": 3}, 0, "") == folder
    assert queue.read_progress(folder).state == "waiting"
    assert jobs.folder(folder.name) == folder
    for name in ("../runs", "", folder.name + "/..", None):
        with pytest.raises(UserError, match="unknown job"):
            jobs.folder(name)
    with pytest.raises(UserError, match="unknown field"):
        jobs.queue_erasure("tiny", "cat", "object", "", "esd", {"stepz": 3}, 0, "")
    with pytest.raises(UserError, match="needs a name"):
        jobs.queue_erasure("tiny", " ", "object", "", "esd", {}, 0, "")
    with pytest.raises(UserError, match="choose an edit"):
        jobs.queue_audit("tiny", [], "pocket", "smoke")
    monkeypatch.setattr("app.web.studio_jobs.MAX_QUEUED", 3)
    for seed in (1, 2):
        jobs.queue_erasure("tiny", "cat", "object", "", "esd", {}, seed, "")
    with pytest.raises(UserError, match="are waiting already"):
        jobs.queue_erasure("tiny", "cat", "object", "", "esd", {}, 99, "")


def test_jobs_are_moved_renamed_and_deleted(studio: Studio) -> None:
    from app.web.studio_jobs import title_of

    jobs = studio.jobs
    folders = [jobs.queue_erasure("tiny", name, "object", "", "esd", {}, 0, "") for name in ("cat", "dog", "bird")]
    assert jobs.waiting() == folders
    jobs.move(folders[2].name, "up")
    assert jobs.waiting() == [folders[0], folders[2], folders[1]]
    jobs.move(folders[0].name, "down")
    assert jobs.waiting() == [folders[2], folders[0], folders[1]]
    jobs.move(folders[2].name, "up")  # it is the first already
    assert jobs.waiting()[0] == folders[2]
    jobs.rename(folders[0].name, "  the   first ")
    assert title_of(folders[0], queue.spec_of(folders[0])) == "the first"
    jobs.rename(folders[0].name, "")
    assert title_of(folders[0], queue.spec_of(folders[0])) == "cat by ESD"
    with pytest.raises(UserError, match="80 characters"):
        jobs.rename(folders[0].name, "x" * 81)
    jobs.delete(folders[1].name)
    assert not folders[1].exists() and len(jobs.all()) == 2
    queue.cancel(folders[0])
    with pytest.raises(UserError, match="only a waiting job can be moved"):
        jobs.move(folders[0].name, "up")
    jobs.resume(folders[0].name)
    assert queue.read_progress(folders[0]).state == "waiting"


def test_a_running_job_is_not_deleted(studio: Studio) -> None:
    from erasure.storage.locks import lock_folder

    folder = studio.jobs.queue_erasure("tiny", "cat", "object", "", "esd", {}, 0, "")
    with lock_folder(folder, "a test"), pytest.raises(UserError, match="is running; cancel it first"):
        studio.jobs.delete(folder.name)
    assert (folder / "spec.json").exists()


def test_downloads_are_the_formats_an_edit_can_take(studio: Studio, model: StableDiffusion) -> None:
    job = studio.jobs.queue_erasure("tiny", "cat", "object", "", "esd", {}, 0, "")
    erase(model, CAT, SHORT_ESD, out=job / "edit")
    for export_format in ("edit", "lora", "folder", "checkpoint"):
        assert downloads.make_zip(studio, job, export_format).stat().st_size > 1000
        assert downloads.describe_loss(job, export_format) == ""
    shutil.rmtree(job / "downloads" / "lora")
    to_lora(model, Edit.load(job / "edit"), job / "downloads" / "lora", rank=2)
    assert "carries" in downloads.describe_loss(job, "lora") and "--format checkpoint" in downloads.describe_loss(job, "lora")
    with pytest.raises(UserError, match="text encoder"):
        downloads.make_zip(studio, job, "text-encoder")
    with pytest.raises(UserError, match="unknown format"):
        downloads.make_zip(studio, job, "../../x")


def test_a_model_is_loaded_when_it_is_chosen_and_leaves_when_another_needs_its_room(
    model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(source: str) -> StableDiffusion:
        loaded.append(source)
        return model

    models = StudioModels(("a", "b"), load)
    assert not models.is_loaded("a")
    models.get("a"), models.get("a"), models.get("b")
    assert loaded == ["a", "b"]
    monkeypatch.setattr("app.web.models.bytes_in_memory", lambda source, on_gpu: 100)
    monkeypatch.setattr("app.web.models.free_bytes", lambda: 200 if len(models.loaded) < 2 else 0)
    models.sources = ("a", "b", "c")
    models.get("c")
    assert list(models.loaded) == ["b", "c"]  # a was not used for longest
    monkeypatch.setattr("app.web.models.free_bytes", lambda: 50)
    with pytest.raises(UserError, match=r"needs about 0\.0 GiB of memory"):
        models.get("a")


def test_an_open_address_needs_a_login() -> None:
    with pytest.raises(UserError, match="can be reached from other machines"):
        check_login(StudioCommand(host="0.0.0.0"))
    with pytest.raises(UserError, match="user:password"):
        check_login(StudioCommand(auth="ada"))
    assert check_login(StudioCommand(host="0.0.0.0", auth="ada:secret")) == ("ada", "secret")
    assert check_login(StudioCommand()) is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"api_key": "k"}, "is the key of --images-api"),
        ({"images_api": True, "host": "0.0.0.0", "auth": "ada:secret"}, "can be reached from other machines"),
        ({"images_api": True, "auth": "ada:secret"}, "behind the login of --auth"),
        ({"root_path": "erasure"}, "is a path such as /erasure"),
        ({"root_path": "//evil.example"}, "is a path such as /erasure"),
    ],
)
def test_options_of_the_api_and_of_a_proxy_are_checked(options: dict, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ERASURE_API_KEY", raising=False)
    with pytest.raises(UserError, match=complaint):
        check_api_key(StudioCommand(**options))
    assert check_api_key(StudioCommand(images_api=True, auth="ada:secret", api_key="k", root_path="/erasure")) == "k"


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
    studio.sampler.checker = load_safety_checker(str(tmp_path / "checker"))
    *_, comparison = studio.sampler.compare(ONE)
    assert comparison.hidden == (0, 1)
    result = studio.results.add(ONE, comparison)
    sharp, soft = images.to_image(comparison.base[0]).convert("L"), result.image("0-before").convert("L")
    edges = [sum(abs(a - b) for a, b in zip(image.tobytes(), image.tobytes()[1:], strict=False)) for image in (sharp, soft)]
    assert edges[1] < 0.3 * edges[0]
    assert not any("difference" in name for name, _ in result.names())
    (strip,) = studio.sampler.strengths(ONE)
    assert len(strip.hidden) == 4
    with pytest.raises(UserError, match="cannot be loaded"):
        load_safety_checker(str(tmp_path / "none"))
