"""Damaged files: each is noticed, named in one line and made again, and the run ends with the bytes of an undisturbed one."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.jobs import leaderboard
from app.jobs.audit_outcomes import load_outcomes
from erasure import erasing
from erasure.edits import Edit
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.storage.files import DamagedFile, read_json, write_json
from erasure.storage.run import Run
from eval.auditing.run import audit_plan
from eval.comparison import tabulate_comparison
from eval.records.convert import to_record
from eval.records.result_files import read_result
from eval.report.html import write_report
from eval.scoring.recount import load_sample_rows, recount
from tests import tiny
from tests.damage import DAMAGE, flip_bit, replace_by_folder, truncate
from tests.factories import attack_plan
from tests.planted import reseal
from tests.stopped_runs import STOP, Stopped, reproducible_bytes, run_salun

ATTACK = {"name": "seed_search", "paper": "", "threat": "", "control": True, "fields": {}}


# an erasure -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SalunRuns:
    """A SalUn erasure that ran to its end, and one that was stopped on the way: folders "out" and "cache" each."""

    straight: Path
    stopped: Path


@pytest.fixture(scope="module")
def salun_runs(tmp_path_factory: pytest.TempPathFactory) -> SalunRuns:
    """Made once; tests damage copies."""
    runs = SalunRuns(tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("stopped"))
    model = StableDiffusion(tiny.pipeline(), "tiny", "fp32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(erasing, "TrainingOptions", partial(erasing.TrainingOptions, checkpoint_every=2))
        patch.setenv("ERASURE_CACHE", str(runs.straight / "cache"))
        run_salun(model, runs.straight / "out")
        patch.setenv("ERASURE_CACHE", str(runs.stopped / "cache"))
        with pytest.raises(Stopped):
            run_salun(model, runs.stopped / "out", stop=STOP)
    return runs


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "pattern", ["cache/teacher-caches/*/trajectories-00000.safetensors", "out/checkpoint.pt", "out/mask.safetensors", "out/train.jsonl"]
)
def test_an_interrupted_erasure_survives_damage(
    model: StableDiffusion,
    salun_runs: SalunRuns,
    tmp_path: Path,
    frequent_checkpoints: None,
    capsys: pytest.CaptureFixture[str],
    pattern: str,
    damage: Callable[[Path], None],
) -> None:
    shutil.copytree(salun_runs.stopped, tmp_path, dirs_exist_ok=True)
    (path,) = tmp_path.glob(pattern)
    damage(path)
    capsys.readouterr()
    run_salun(model, tmp_path / "out")
    assert reproducible_bytes(tmp_path / "out") == reproducible_bytes(salun_runs.straight / "out")
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("erasure: ")]
    if path.name == "train.jsonl":  # written anew from the checkpoint, whatever it holds
        assert warnings == []
    else:
        assert len(warnings) == 1 and str(path) in warnings[0]
    assert run_salun(model, tmp_path / "out").info.method == "salun"


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["edit.safetensors", "edit.json", "result.json"])
def test_a_damaged_edit_is_made_again(
    model: StableDiffusion,
    salun_runs: SalunRuns,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[Path], None],
) -> None:
    shutil.copytree(salun_runs.straight, tmp_path, dirs_exist_ok=True)
    expected = reproducible_bytes(tmp_path / "out")
    if damage is flip_bit and name == "edit.json":
        text = (tmp_path / "out" / name).read_text()
        (tmp_path / "out" / name).write_text(text.replace('"fingerprint": "', '"fingerprint": "0'))
    else:
        damage(tmp_path / "out" / name)
    capsys.readouterr()
    if damage is replace_by_folder and name == "result.json":
        run_salun(model, tmp_path / "out")  # an empty folder in its place is as good as none
    else:
        run_salun(model, tmp_path / "out")
        warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("erasure: ")]
        assert len(warnings) == 1 and str(tmp_path / "out") in warnings[0] and "made anew" in warnings[0]
    assert reproducible_bytes(tmp_path / "out") == expected


def test_a_damaged_job_names_the_remedy(tmp_path: Path) -> None:
    Run(tmp_path / "out", {"task": "erase"}).begin()
    truncate(tmp_path / "out" / "job.json")
    with pytest.raises(UserError, match=r"job.json cannot be read as JSON: .* --fresh"):
        Run(tmp_path / "out", {"task": "erase"})
    Run(tmp_path / "out", {"task": "erase"}, fresh=True).begin()
    assert not Run(tmp_path / "out", {"task": "erase"}).is_complete


def test_a_folder_with_content_in_a_files_place_is_left_alone(model: StableDiffusion, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run_salun(model, tmp_path / "out")
    (tmp_path / "out" / "edit.json").unlink()
    (tmp_path / "out" / "edit.json").mkdir()
    (tmp_path / "out" / "edit.json" / "mine").touch()
    with pytest.raises(UserError, match=r"edit.json is a folder where a file belongs; move it away"):
        run_salun(model, tmp_path / "out")
    assert (tmp_path / "out" / "edit.json" / "mine").exists() and not list(tmp_path.rglob("*.part"))


# an audit with attacks ----------------------------------------------------------------------------------------------------------------


def run_audit(model: StableDiffusion, edit: Edit, out: Path) -> None:
    plan = attack_plan(edit)
    write_report(out, audit_plan(model, [edit], plan, out), plan.suite.gates)


def test_an_audit_makes_damaged_files_again(
    pocket_sized_model: StableDiffusion,
    neon_edit: Edit,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "audit"
    run_audit(pocket_sized_model, neon_edit, out)
    expected = reproducible_bytes(out)
    patterns = [
        "audit/images/erased/*-00.png",
        "audit/scores/style-*.jsonl",
        "audit/attacks/judge.json",
        "audit/attacks/soft_prefix/0000.json",
        "audit/attacks/soft_prefix/fitted.safetensors",
        "audit/attacks/again/curve.json",
        "cache/teacher-caches/*/trajectories-00000.safetensors",
        "cache/samples/*/*.png",
    ]
    for i, pattern in enumerate(patterns):
        path = max(tmp_path.glob(pattern), key=lambda p: p.stat().st_mtime_ns)  # the audit's, not the erasure's
        if pattern.startswith("cache/samples"):  # which is looked at when the image itself is missing
            image = next(p for p in sorted((out / "images").rglob("*.png")) if p.read_bytes() == path.read_bytes())
            image.unlink()
        if path.name == "fitted.safetensors":  # which is looked at when a chunk is missing
            (out / "attacks" / "soft_prefix" / "0000.json").unlink()
        DAMAGE[i % len(DAMAGE)](path)
        capsys.readouterr()
        run_audit(pocket_sized_model, neon_edit, out)
        warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("erasure: ")]
        assert any(str(path) in line for line in warnings), (pattern, warnings)
        assert reproducible_bytes(out) == expected, pattern


def test_rows_that_are_not_those_of_the_result_are_refused(
    pocket_sized_model: StableDiffusion,
    neon_edit: Edit,
    tmp_path: Path,
) -> None:
    out = tmp_path / "audit"
    plan = replace(attack_plan(neon_edit, {}), tier="smoke")
    audit_plan(pocket_sized_model, [neon_edit], plan, out)
    load_sample_rows(out)
    text = (out / "samples.jsonl").read_text()
    (out / "samples.jsonl").write_text(text.replace('"index": 0', '"index": 1', 1))
    with pytest.raises(DamagedFile, match=r"is not what .* was counted from; audit again with the same command"):
        load_sample_rows(out)
    audit_plan(pocket_sized_model, [neon_edit], plan, out)
    load_sample_rows(out)
    truncate(out / "result.json")
    with pytest.raises(DamagedFile):
        read_result(out)
    audit_plan(pocket_sized_model, [neon_edit], plan, out)
    assert read_result(out).tier == "smoke"


def test_a_result_that_no_audit_wrote_is_refused_with_the_fault(
    pocket_sized_model: StableDiffusion,
    neon_edit: Edit,
    tmp_path: Path,
) -> None:
    """With the right checksum."""
    out = tmp_path / "audit"
    audit_plan(pocket_sized_model, [neon_edit], replace(attack_plan(neon_edit, {}), tier="smoke"), out)
    result = to_record(read_result(out))
    rates, pair = result["models"]["erased"]["rates"], result["paired"]["UA"]

    def change_ua(**other: float) -> dict[str, Any]:
        return {
            "models": {**result["models"], "erased": {**result["models"]["erased"], "rates": {**rates, "UA": {**rates["UA"], **other}}}}
        }

    for change, words in (
        ({"targets": "neon"}, "targets must be a list of texts, got 'neon'"),
        ({"nonsense": 1}, "unknown key in .* 'nonsense'"),
        ({"image_set_distances": {"parts": {}}}, "image_set_distances in .* lacks extractor"),
        ({"pixel_distance": 3}, "pixel_distance must be a mapping, got 3"),
        ({"attacks": [{**ATTACK, "curve": [{"images": 0}]}]}, "lacks"),
        ({"attacks": [{**ATTACK, "curv": []}]}, "unknown key in .* 'curv'. Did you mean 'curve'"),
        ({"models": {"base": result["models"]["base"]}}, "no figures of the erased model"),
        (change_ua(k=99), "UA counts 99 of 6"),
        (change_ua(estimate=0.5), r"the estimate of UA is 0\.5, but \d of 6 is"),
        (change_ua(low=1.0, high=0.0), "the interval of UA, 1 to 0, leaves out its estimate"),
        (change_ua(low=0.0, high=1.0), "the interval of UA of erased is 0 to 1, but"),
        (
            {"paired": {"UA": {**pair, "estimate": -0.875}}},
            "the paired difference of UA is -0.875, but its pairs say|leaves out its estimate",
        ),
        ({"models": {"erased": {**result["models"]["erased"], "rates": {}}}}, "the rates of erased lack UA"),
        ({"models": {"erased": {**result["models"]["erased"], "confusion": {"labels": ["a"], "counts": []}}}}, "is not 1 x 1"),
        ({"targets": ["boat"]}, "has no row for 'boat'"),
    ):
        reseal(out, {**result, **change})
        with pytest.raises(UserError, match=words):
            read_result(out)
    reseal(out, result)
    read_result(out)


def test_a_result_changed_by_hand_is_refused_by_every_reader(
    pocket_sized_model: StableDiffusion,
    neon_edit: Edit,
    tmp_path: Path,
) -> None:
    out = tmp_path / "audit"
    plan = replace(attack_plan(neon_edit, {}), tier="smoke")
    write_report(out, audit_plan(pocket_sized_model, [neon_edit], plan, out), plan.suite.gates)
    original, job = read_json(out / "result.json"), tmp_path / "job"
    assert len(leaderboard.load_leaderboard(tmp_path)[0]) == 1 and leaderboard.load_leaderboard(tmp_path)[1] == []
    shutil.copytree(out, job / "audit")
    write_json(job / "done.json", {"audits": ["audit"], "edits": [], "seconds": 1.0})
    changed = {**original, "models": {**original["models"], "erased": {**original["models"]["erased"], "excluded": {}}}, "tier": "full"}
    unsealed = {key: value for key, value in original.items() if key != "sha256"}
    for result, words in ((changed, "its checksum does not match"), (unsealed, "by an earlier version .* audit again with --fresh")):
        for folder in (out, job / "audit"):
            write_json(folder / "result.json", result)
        for read in (
            read_result,
            load_sample_rows,
            lambda folder: recount(folder, plan.suite),
            lambda folder: tabulate_comparison(folder, folder),
        ):
            with pytest.raises(UserError, match=words):
                read(out)
        rows, broken = leaderboard.load_leaderboard(tmp_path)
        assert rows == [] and len(broken) == 2 and all(re.search(words, line) for line in broken)
        assert [outcome.state for outcome in load_outcomes(job)] == ["UNREADABLE"]
    audit_plan(pocket_sized_model, [neon_edit], plan, out)
    assert read_json(out / "result.json") == original
