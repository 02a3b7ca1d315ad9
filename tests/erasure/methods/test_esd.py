"""ESD against its equation, and the loop around it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from erasure.concept import Concept
from erasure.edits import Edit
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.base import TrainingContext
from erasure.methods.esd import ESD
from erasure.methods.salun import SalUn
from erasure.recipes import configure_method
from erasure.training import fill_cache
from erasure.training.loop import TrainingOptions, train
from erasure.training.teacher_cache import TeacherBatch
from tests import tiny
from tests.factories import ESD_FIELDS

CAT = [Concept(name="cat", kind="object")]


def random_batch() -> TeacherBatch:
    generator = torch.Generator().manual_seed(0)
    x, c, u, x_0 = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(4))
    return TeacherBatch(x, torch.tensor([10, 700]), ["cat", "a cat"], c, u, x_0, ["", ""])


@pytest.mark.parametrize("eta", [0.0, 1.0, 3.0])
def test_loss_is_the_papers_and_the_newer_scripts(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch, eta: float) -> None:
    """The newer script starts from the conditional prediction; its value is the paper's plus one."""
    batch, prediction = random_batch(), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    method = ESD(negative_guidance=eta, trajectories=4, trajectory_steps=1)
    context = TrainingContext(model, fill_cache.load_or_fill(model, method.query(CAT, seed=0)), model.encode)
    monkeypatch.setattr(TrainingContext, "predict", lambda *_: prediction)
    loss = method.loss(context, batch)
    script = batch.pred_cond - (eta + 1) * (batch.pred_cond - batch.pred_neutral)
    assert torch.allclose(loss, (prediction - script).pow(2).mean())


def test_erase_from_keeps_the_object() -> None:
    query = ESD(erase_from="rose").query([Concept(name="red", kind="object")], seed=0)
    assert query.prompt_pairs == (("red rose", "rose"),)


def test_cache_rows_are_the_teachers_predictions(model: StableDiffusion) -> None:
    concept = Concept(name="cat", kind="object", prompts=("{}", "a {} at night | night"))
    cache = fill_cache.load_or_fill(model, ESD(trajectories=4, trajectory_steps=3).query([concept], seed=0))
    assert len(cache) == 12
    batch = cache.gather_batch(torch.arange(12), model.device)
    without = [cache.query.prompt_pairs[i][1] for i in cache.prompt_index.tolist()]
    with torch.no_grad():
        cond = model.predict(batch.x_t, batch.t, model.encode(batch.prompts))
        uncond = model.predict(batch.x_t, batch.t, model.encode(without))
    assert torch.allclose(cond, batch.pred_cond, atol=2e-2)
    assert torch.allclose(uncond, batch.pred_neutral, atol=2e-2)
    assert {"", "night"} == set(without)


def test_only_the_region_moves_and_the_model_is_left_alone(model: StableDiffusion, tmp_path: Path) -> None:
    before = model.fingerprint()
    edit = erase(model, CAT, ESD(region="xattn-kv", **ESD_FIELDS), out=tmp_path / "run")
    assert model.fingerprint() == before
    assert set(edit.tensors) == set(model.parameter_names("xattn-kv"))
    assert any(not torch.equal(t, model.parameters()[n].detach().half()) for n, t in edit.tensors.items())
    assert not any(p.requires_grad for p in model.parameters().values())


@pytest.mark.parametrize("region", ["xattn", "noxattn", "selfattn", "ff-out", "full", "text-encoder"])
def test_every_region_trains_and_nothing_else_moves(model: StableDiffusion, tmp_path: Path, region: str) -> None:
    edit = erase(model, CAT, ESD(region=region, **ESD_FIELDS), out=tmp_path / "run")  # type: ignore[arg-type]
    moved = {n for n, t in edit.tensors.items() if not torch.equal(t, model.parameters()[n].detach().half())}
    assert moved and moved <= set(model.parameter_names(region)) == set(edit.tensors)


def test_erasing_moves_the_concept_towards_its_target(model: StableDiffusion, tmp_path: Path) -> None:
    method = ESD(**{**ESD_FIELDS, "steps": 60, "batch": 4, "lr": 3e-3, "region": "full"})
    cache = fill_cache.load_or_fill(model, method.query(CAT, seed=0))
    batch = cache.gather_batch(torch.arange(len(cache)), model.device)

    def loss() -> float:
        with torch.no_grad():
            context = TrainingContext(model, cache, encode=model.encode)
            return method.loss(context, batch).item()

    before = loss()
    erase(model, CAT, method, out=tmp_path / "run").apply(model.pipe)
    assert loss() < 0.5 * before


def test_resume_equals_a_straight_run(tmp_path: Path, model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    method = ESD(**{**ESD_FIELDS, "steps": 60})
    erase(model, CAT, method, out=tmp_path / "straight")

    class Stop(BaseException):
        pass

    real, calls = ESD.loss, []

    def failing(self, context, batch):
        calls.append(1)
        if len(calls) == 41:
            raise Stop
        return real(self, context, batch)

    monkeypatch.setattr(ESD, "loss", failing)
    with pytest.raises(Stop):
        erase(model, CAT, method, out=tmp_path / "broken")
    assert not (tmp_path / "broken" / "result.json").exists()
    erase(model, CAT, method, out=tmp_path / "broken")
    straight, broken = ((tmp_path / n / "edit.safetensors").read_bytes() for n in ("straight", "broken"))
    assert straight == broken
    assert (tmp_path / "straight" / "train.jsonl").read_text() == (tmp_path / "broken" / "train.jsonl").read_text()
    assert len(calls) == 41 + 60 - 25


def test_a_complete_run_is_not_repeated_and_another_job_is_refused(model: StableDiffusion, tmp_path: Path) -> None:
    first = erase(model, CAT, ESD(**ESD_FIELDS), out=tmp_path / "run")
    done = model.cost.unet_backwards
    assert erase(model, CAT, ESD(**ESD_FIELDS), out=tmp_path / "run").digest() == first.digest()
    assert model.cost.unet_backwards == done
    with pytest.raises(UserError, match=r"holds the erasure of cat \(esd\) with other settings: fields: its steps is 6, this one"):
        erase(model, CAT, ESD(**{**ESD_FIELDS, "steps": 7}), out=tmp_path / "run")
    erase(model, CAT, ESD(**{**ESD_FIELDS, "steps": 7}), out=tmp_path / "run", fresh=True)


def test_a_loss_that_is_not_finite_stops_and_names_step_and_cause(model: StableDiffusion, tmp_path: Path) -> None:
    before = model.fingerprint()
    with pytest.raises(UserError, match=r"step [12]: the (trained weights hold|updates have grown too large, so lower --lr)") as caught:
        erase(model, CAT, ESD(**{**ESD_FIELDS, "lr": 1e18}), out=tmp_path / "run")
    assert "checkpoint" not in str(caught.value) and not (tmp_path / "run" / "checkpoint.pt").exists()
    assert model.fingerprint() == before


@pytest.mark.parametrize(("precision", "words"), [("fp32", "no update has been made yet"), ("bf16", "the likely cause is bf16")])
def test_a_cache_that_is_not_finite_is_named_as_the_cause(tmp_path: Path, precision: Any, words: str) -> None:
    model, method = StableDiffusion(tiny.pipeline(), "tiny", precision), ESD(**ESD_FIELDS)
    cache = fill_cache.load_or_fill(model, method.query(CAT, seed=0))
    cache_with_nan = replace(cache, pred_neutral=cache.pred_neutral * torch.nan)
    with pytest.raises(UserError, match=f"step 0: the frozen model's own predictions hold NaN or Inf; {words}"):
        train(model, method, cache_with_nan, TrainingOptions(folder=tmp_path))


def test_a_loss_that_is_not_finite_names_the_checkpoint_that_is_there(
    model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frequent_checkpoints: None
) -> None:
    real, calls = ESD.step, []

    def step(self: ESD, context: Any) -> Any:
        calls.append(1)
        for optimizer_step in real(self, context):
            yield optimizer_step if len(calls) < 4 else replace(optimizer_step, loss=optimizer_step.loss * torch.nan)

    monkeypatch.setattr(ESD, "step", step)
    with pytest.raises(UserError, match=r"loss is nan at step 3: .*lower --lr\. .*checkpoint\.pt holds the training as it was before"):
        erase(model, CAT, ESD(**ESD_FIELDS), out=tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint.pt").is_file()


def test_several_concepts_share_the_trajectories(model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase(model, [*CAT, Concept(name="dog", kind="object")], ESD(**ESD_FIELDS), out=tmp_path / "run")
    assert [c["name"] for c in edit.info.concepts] == ["cat", "dog"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(6))


def test_an_edit_generates_the_same_images_after_a_round_trip(model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase(model, CAT, ESD(**ESD_FIELDS), out=tmp_path / "run")
    edit.apply(model.pipe)
    edited = model.decode(model.sample(["cat"], [1], steps=4))
    edit.revert(model.pipe)
    base = model.decode(model.sample(["cat"], [1], steps=4))
    Edit.load(tmp_path / "run").apply(model.pipe)
    assert torch.equal(model.decode(model.sample(["cat"], [1], steps=4)), edited)
    assert not torch.equal(base, edited)


@pytest.mark.parametrize(
    ("field", "value", "words"), [("lr", 0.0, "--lr"), ("steps", 0, "--steps"), ("batch", -1, "--batch"), ("lr", float("nan"), "--lr")]
)
def test_values_out_of_range_are_refused(field: str, value: float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ESD(**{**ESD_FIELDS, field: value})


def test_too_few_trajectories_for_the_prompts(model: StableDiffusion, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4 prompts need as many --trajectories, got 3"):
        erase(model, CAT, ESD(**{**ESD_FIELDS, "trajectories": 3}), out=tmp_path / "run")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_gradient_checkpointing_changes_nothing(prediction: str, tmp_path: Path) -> None:
    model = StableDiffusion(tiny.pipeline(prediction), "tiny", "fp32")
    plain = erase(model, CAT, ESD(**ESD_FIELDS), out=tmp_path / "a")
    saving = erase(model, CAT, ESD(**ESD_FIELDS), out=tmp_path / "b", gradient_checkpointing=True)
    assert plain.digest() == saving.digest()


def test_a_missing_tracker_is_named(model: StableDiffusion, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--report-to mlflow"):
        erase(model, CAT, ESD(**ESD_FIELDS), out=tmp_path / "run", report_to="mlflow")


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(UserError, match="Did you mean 'negative_guidance'"):
        configure_method(ESD, CAT, "sd1", {"negative_guidence": 2.0})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": "abc"}, "method esd: lr must be a number, got 'abc'"),
        ({"steps": 2.5}, "method esd: steps must be a whole number, got 2.5"),
        ({"steps": True}, "method esd: steps must be a whole number, got True"),
        ({"region": "xatn"}, "Did you mean 'xattn'"),
    ],
)
def test_fields_of_another_type_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configure_method(ESD, CAT, "sd1", fields)


def test_a_list_from_a_file_is_a_tuple() -> None:
    """So that a plan and the command line describe the same job."""
    method, _, _ = configure_method(SalUn, CAT, "sd1", {"retain_prompts": ["a dog", "a hen"]})
    assert isinstance(method, SalUn) and method.retain_prompts == ("a dog", "a hen")
