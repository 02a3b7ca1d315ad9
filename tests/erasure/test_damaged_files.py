"""Damaged files: each is noticed, named in one line and made anew, and the run ends with the bytes of an undisturbed one."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.jobs import leaderboard as board
from app.jobs.audit_outcomes import load_outcomes
from erasure.concept import Concept
from erasure.edits import Edit
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.base import Trained, TrainingContext
from erasure.methods.salun import SalUn
from erasure.storage.files import DamagedFile, read_checksummed_json, read_json, write_checksummed_json, write_json
from erasure.storage.run import Run
from erasure.storage.tensor_files import load_or_make, load_state, load_tensors, save_state
from eval.audit import audit
from eval.compare import tabulate_comparison
from eval.generation import load_png, read_png, save_png
from eval.report.html import write_report
from eval.scoring.judge_scores import load_scores, score_line
from eval.scoring.recount import load_finished_audit, load_sample_rows, recount
from tests.eval.attack_runs.test_runner import MOUNTED, edit, plan_of  # noqa: F401  # a fixture
from tests.eval.test_audit import big  # noqa: F401  # a fixture
from tests.planted import reseal

ATTACK = {"name": "seed_search", "paper": "", "threat": "", "control": True, "fields": {}}


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 4
    path.write_bytes(data)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def unlike(path: Path) -> None:
    """Another whole file in its place."""
    from safetensors.torch import save_file

    if path.suffix == ".safetensors":
        save_file({"x_0": torch.zeros(2)}, path)
    elif path.suffix == ".png":
        path.write_bytes(b"GIF89a")
    else:
        path.write_text('{"another": ["file"]}\n')


DAMAGE = (flipped, truncated, emptied, a_folder, unlike)


def same_bytes(folder: Path) -> dict[str, bytes]:
    """Everything that two runs of one job share: all but times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("timing.json", "result.json", "report.html")
    }


# what holds the checksums -----------------------------------------------------------------------------------------------------------


def test_no_byte_of_tensors_states_and_pictures_can_change_unseen(tmp_path: Path) -> None:
    tensors, state, picture = tmp_path / "t.safetensors", tmp_path / "s.pt", tmp_path / "p.png"
    load_or_make(tensors, lambda: {"a": torch.arange(6).half(), "b": torch.zeros(0, 2), "c": torch.tensor(True)})
    save_state(state, {"step": 3, "players": {"x": {"a": torch.ones(3)}}, "log": "l\n"})
    assert load_state(state)["step"] == 3 and torch.equal(load_state(state)["players"]["x"]["a"], torch.ones(3))
    save_png((torch.arange(48).view(3, 4, 4) * 5).byte(), picture)
    readers: dict[Path, Callable[[Path], object]] = {tensors: load_tensors, state: load_state, picture: load_png}
    for path, read in readers.items():
        data = path.read_bytes()
        read(path)
        for at in range(0, len(data), 1 if path != state else 7):
            path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
            with pytest.raises(DamagedFile):
                read(path)
        for short in (b"", data[:10], data[:-1], data + b"x"):
            path.write_bytes(short)
            with pytest.raises(DamagedFile, match="is damaged"):
                read(path)
        path.unlink()
        with pytest.raises(DamagedFile):
            read(path)


def test_a_file_copied_over_another_is_noticed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        load_or_make(tmp_path / f"{name}.safetensors", lambda name=name: {"x": torch.tensor([ord(name)])})  # type: ignore[misc]
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    with pytest.raises(DamagedFile, match="checksum does not match"):
        load_tensors(tmp_path / "b.safetensors")


def test_sealed_records_tell_any_change(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_checksummed_json(path, {"a": [1, 2.5, None], "ü": (3,)})
    assert read_checksummed_json(path) == {"a": [1, 2.5, None], "ü": [3]}
    path.write_text(path.read_text().replace("2.5", "2.6"))
    with pytest.raises(DamagedFile, match="checksum does not match"):
        read_checksummed_json(path)
    write_json(path, {"a": 1})
    assert read_checksummed_json(path, required=False) == {"a": 1}
    with pytest.raises(DamagedFile, match="no checksum"):
        read_checksummed_json(path)
    for text in ("[1]", "{", "[" * 100_000, "\xff"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(DamagedFile):
            read_checksummed_json(path)


def test_damaged_readings_are_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "readings" / "x.jsonl"
    assert load_scores(path) == {}
    lines = [score_line("base", f"{i}.png", {"p": 0.125 * i}) for i in range(4)]
    path.write_text(lines[0] + lines[1].replace("0.125", "0.525") + "{\n" + lines[3][:-9])
    assert load_scores(path) == {("base", "0.png"): {"p": 0.0}}
    assert capsys.readouterr().err.count("\n") == 1


# an erasure -------------------------------------------------------------------------------------------------------------------------

STEPS, STOP = 8, 6
CAT = [Concept(name="cat", kind="object", prompts=("{}", "a {}"))]


class Stopped(Exception):
    pass


def salun(model: StableDiffusion, out: Path, stop: int = 0) -> Edit:
    """SalUn, which has every kind of file: a recording, a mask, checkpoints, a log."""
    method = SalUn(
        steps=STEPS,
        batch=2,
        trajectories=4,
        trajectory_steps=2,
        retain_prompts=("dog", "a dog"),
        retain_trajectories=2,
        retain_batch=2,
        lr=1e-3,
    )
    seen = []

    def watch(_: Trained, __: TrainingContext) -> None:
        seen.append(1)
        if len(seen) == stop:
            raise Stopped

    return erase(model, CAT, method, out=out, on_step=watch)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A checkpoint every second step."""
    from erasure import erasing as module

    loop = module.TrainingOptions
    monkeypatch.setattr(module, "TrainingOptions", lambda **given: loop(**given, checkpoint_every=2))
    yield


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "pattern", ["cache/banks/*/walks-00000.safetensors", "out/checkpoint.pt", "out/mask.safetensors", "out/train.jsonl"]
)
def test_an_interrupted_erasure_survives_damage(
    model: StableDiffusion,
    tmp_path: Path,
    often: None,
    capsys: pytest.CaptureFixture[str],
    pattern: str,
    damage: Callable[[Path], None],
) -> None:
    salun(model, tmp_path / "straight")
    with pytest.raises(Stopped):
        salun(model, tmp_path / "out", stop=STOP)
    (path,) = tmp_path.glob(pattern)
    damage(path)
    capsys.readouterr()
    salun(model, tmp_path / "out")
    assert same_bytes(tmp_path / "out") == same_bytes(tmp_path / "straight")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("erasure: ")]
    if path.name == "train.jsonl":  # written anew from the checkpoint, whatever it holds
        assert said == []
    else:
        assert len(said) == 1 and str(path) in said[0]
    assert salun(model, tmp_path / "out").info.method == "salun"


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["edit.safetensors", "edit.json", "result.json"])
def test_a_damaged_edit_is_made_anew(
    model: StableDiffusion, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None]
) -> None:
    salun(model, tmp_path / "out")
    expected = same_bytes(tmp_path / "out")
    if damage is flipped and name == "edit.json":
        text = (tmp_path / "out" / name).read_text()
        (tmp_path / "out" / name).write_text(text.replace('"fingerprint": "', '"fingerprint": "0'))
    else:
        damage(tmp_path / "out" / name)
    capsys.readouterr()
    if damage is a_folder and name == "result.json":
        salun(model, tmp_path / "out")  # an empty folder in its place is as good as none
    else:
        salun(model, tmp_path / "out")
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("erasure: ")]
        assert len(said) == 1 and str(tmp_path / "out") in said[0] and "made anew" in said[0]
    assert same_bytes(tmp_path / "out") == expected


def test_a_damaged_job_says_how_to_go_on(tmp_path: Path) -> None:
    Run(tmp_path / "out", {"task": "erase"}).begin()
    truncated(tmp_path / "out" / "job.json")
    with pytest.raises(UserError, match=r"job.json cannot be read as JSON .* use --fresh to start over"):
        Run(tmp_path / "out", {"task": "erase"})
    Run(tmp_path / "out", {"task": "erase"}, fresh=True).begin()
    assert not Run(tmp_path / "out", {"task": "erase"}).is_complete


def test_a_full_folder_in_a_files_place_is_left_to_its_owner(model: StableDiffusion, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    salun(model, tmp_path / "out")
    (tmp_path / "out" / "edit.json").unlink()
    (tmp_path / "out" / "edit.json").mkdir()
    (tmp_path / "out" / "edit.json" / "mine").touch()
    with pytest.raises(UserError, match=r"edit.json is a folder where a file belongs; move it away"):
        salun(model, tmp_path / "out")
    assert (tmp_path / "out" / "edit.json" / "mine").exists() and not list(tmp_path.rglob("*.part"))


# an audit with attacks ----------------------------------------------------------------------------------------------------------------


def audited(model: StableDiffusion, edit: Edit, out: Path) -> None:  # noqa: F811
    plan = replace(plan_of(edit, MOUNTED))
    write_report(out, audit(model, [edit], plan, out), plan.suite.gates)


def test_an_audit_makes_damaged_files_anew(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "audit"
    audited(big, edit, out)
    expected = same_bytes(out)
    patterns = [
        "audit/images/erased/*-00.png",
        "audit/readings/style-*.jsonl",
        "audit/attacks/judge.json",
        "audit/attacks/soft_prefix/0000.json",
        "audit/attacks/soft_prefix/known.safetensors",
        "audit/attacks/again/curve.json",
        "cache/banks/*/walks-00000.safetensors",
        "cache/samples/*/*.png",
    ]
    for i, pattern in enumerate(patterns):
        path = sorted(tmp_path.glob(pattern))[-1]
        if pattern.startswith("cache/samples"):  # which is looked at when the picture itself is missing
            picture = next(p for p in sorted((out / "images").rglob("*.png")) if p.read_bytes() == path.read_bytes())
            picture.unlink()
        if path.name == "known.safetensors":  # which is looked at when a chunk is missing
            (out / "attacks" / "soft_prefix" / "0000.json").unlink()
        DAMAGE[i % len(DAMAGE)](path)
        capsys.readouterr()
        audited(big, edit, out)
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("erasure: ")]
        assert any(str(path) in line for line in said), (pattern, said)
        assert same_bytes(out) == expected, pattern


def test_rows_that_are_not_those_of_the_result_are_refused(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,  # noqa: F811
    tmp_path: Path,
) -> None:
    out = tmp_path / "audit"
    plan = replace(plan_of(edit, {}), tier="smoke")
    audit(big, [edit], plan, out)
    load_sample_rows(out)
    text = (out / "samples.jsonl").read_text()
    (out / "samples.jsonl").write_text(text.replace('"index": 0', '"index": 1', 1))
    with pytest.raises(DamagedFile, match=r"is not what .* was counted from; audit again with the same command"):
        load_sample_rows(out)
    audit(big, [edit], plan, out)
    load_sample_rows(out)
    truncated(out / "result.json")
    with pytest.raises(DamagedFile):
        load_finished_audit(out)
    audit(big, [edit], plan, out)
    assert load_finished_audit(out)["tier"] == "smoke"


def test_a_result_that_no_audit_wrote_is_refused_with_what_is_wrong(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Sealed again by whoever changed it."""
    out = tmp_path / "audit"
    audit(big, [edit], replace(plan_of(edit, {}), tier="smoke"), out)
    result = load_finished_audit(out)
    rates, pair = result["models"]["erased"]["rates"], result["paired"]["UA"]

    def ua(**other: float) -> dict[str, Any]:
        return {
            "models": {**result["models"], "erased": {**result["models"]["erased"], "rates": {**rates, "UA": {**rates["UA"], **other}}}}
        }

    for change, words in (
        ({"targets": "neon"}, "targets must be a valid list, got 'neon'"),
        ({"nonsense": 1}, "unknown key in .* 'nonsense'"),
        ({"distances": {"parts": {}}}, "distances lacks extractor; it is empty or holds them all"),
        ({"distance": 3}, "distance must be a valid dictionary, got 3"),
        ({"attacks": [{**ATTACK, "curve": [{"pictures": 0}]}]}, "lacks"),
        ({"attacks": [{**ATTACK, "curv": []}]}, "unknown key in .* 'curv'. Did you mean 'curve'"),
        ({"models": {"base": result["models"]["base"]}}, "no figures of the erased model"),
        (ua(k=99), "UA counts 99 of 6"),
        (ua(estimate=0.5), r"the estimate of UA is 0\.5, but \d of 6 is"),
        (ua(low=1.0, high=0.0), "the interval of UA, 1 to 0, leaves out its estimate"),
        (ua(low=0.0, high=1.0), "the interval of UA of erased is 0 to 1, but"),
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
            load_finished_audit(out)
    reseal(out, result)
    load_finished_audit(out)


def test_a_result_changed_by_hand_is_refused_by_whoever_reads_it(
    big: StableDiffusion,  # noqa: F811
    edit: Edit,  # noqa: F811
    tmp_path: Path,
) -> None:
    out = tmp_path / "audit"
    plan = replace(plan_of(edit, {}), tier="smoke")
    write_report(out, audit(big, [edit], plan, out), plan.suite.gates)
    sound, job = read_json(out / "result.json"), tmp_path / "job"
    assert len(board.load_leaderboard(tmp_path)[0]) == 1 and board.load_leaderboard(tmp_path)[1] == []
    shutil.copytree(out, job / "audit")
    write_json(job / "done.json", {"audits": ["audit"], "edits": [], "seconds": 1.0})
    changed = {**sound, "models": {**sound["models"], "erased": {**sound["models"]["erased"], "apart": {}}}, "tier": "full"}
    unsealed = {key: value for key, value in sound.items() if key != "sha256"}
    for result, words in ((changed, "its checksum does not match"), (unsealed, "by an earlier version .* audit again with --fresh")):
        for folder in (out, job / "audit"):
            write_json(folder / "result.json", result)
        for read in (
            load_finished_audit,
            load_sample_rows,
            lambda folder: recount(folder, plan.suite),
            lambda folder: tabulate_comparison(folder, folder),
        ):
            with pytest.raises(UserError, match=words):
                read(out)
        rows, broken = board.load_leaderboard(tmp_path)
        assert rows == [] and len(broken) == 2 and all(re.search(words, line) for line in broken)
        assert [found.state for found in load_outcomes(job)] == ["UNREADABLE"]
    audit(big, [edit], plan, out)
    assert read_json(out / "result.json") == sound


def test_missing_pictures_are_not_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_png(tmp_path / "none.png") is None
    assert capsys.readouterr().err == ""
