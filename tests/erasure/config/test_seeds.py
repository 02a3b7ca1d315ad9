"""Seeds up to 2^63 - 1 work wherever one is given; small ones give the same streams as before."""

import json
from pathlib import Path

import pytest
import torch

from app.cli import main
from app.jobs.plan import JobSpec, load_plan
from erasure.concept import Concept
from erasure.config.seeds import MAX_SEED, check_seed, derive_seed, parse_seed
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.esd import ESD
from erasure.methods.fia import FIA
from erasure.training.teacher_cache import TeacherQuery

CAT = [Concept(name="cat", kind="object")]


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31 - 1, 2**31, 2**32, 2**44])
@pytest.mark.parametrize("k", [-1, 0, 3, 500_000, 900_003])
def test_streams_of_small_seeds_are_unchanged(seed: int, k: int) -> None:
    assert derive_seed(seed, k) == seed * 1_000_003 + k


def test_streams_of_large_seeds_fit_a_generator_and_differ() -> None:
    streams = [derive_seed(seed, k) for seed in (2**45, 2**63 - 2, MAX_SEED) for k in (-1, 0, 1, 500_000, 900_000)]
    assert len(set(streams)) == len(streams) and all(0 <= seed < 2**63 for seed in streams)
    for seed in streams:
        torch.manual_seed(seed)


@pytest.mark.parametrize("seed", [-1, 2**63, 10**5000], ids=["below", "above", "far above"])
def test_seeds_beyond_are_one_short_line(seed: int) -> None:
    with pytest.raises(UserError, match=r"a seed is a whole number from 0 to 9223372036854775807 \(2\^63 - 1\)") as error:
        check_seed(seed)
    assert len(str(error.value)) < 150 and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["-1", "9223372036854775808", "1.5", "1e9", "x" * 99, "", "٣", "9" * 5000])
def test_form_fields_take_whole_numbers_only(text: str) -> None:
    with pytest.raises(UserError, match="a seed is a whole number") as error:
        parse_seed(text)
    assert len(str(error.value)) < 150
    assert parse_seed(" 9223372036854775807 ") == MAX_SEED


def test_teacher_caches_of_large_seeds_never_repeat_noise() -> None:
    starts = TeacherQuery(
        prompt_pairs=(("a", ""),), trajectories=50, steps=1, guidance=1.0, seed=MAX_SEED, retain_prompts=("b",), retain_trajectories=50
    ).trajectory_starts()
    assert len({seed for seed, _ in starts}) == 100


@pytest.mark.parametrize("method", [ESD(steps=2, trajectories=4, trajectory_steps=2), FIA(trajectory_steps=2, record_steps=1)])
def test_an_erasure_takes_the_largest_seed(model: StableDiffusion, tmp_path: Path, method: ESD | FIA) -> None:
    edit = erase(model, CAT, method, out=tmp_path / "edit", seed=MAX_SEED)
    other = erase(model, CAT, method, out=tmp_path / "other", seed=MAX_SEED - 1)
    assert json.loads((tmp_path / "edit" / "edit.json").read_text())["seed"] == MAX_SEED == edit.info.seed
    assert isinstance(method, FIA) or edit.digest() != other.digest()
    with pytest.raises(UserError, match="a seed is a whole number"):
        erase(model, CAT, method, out=tmp_path / "none", seed=MAX_SEED + 1)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("seed", ["9223372036854775808", "-1"])
def test_the_command_line_refuses_before_a_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: str) -> None:
    assert main(["erase", "--concept", "neon", "--seed", seed, "--model", str(tmp_path), "--out", str(tmp_path / "x")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("erasure: a seed is a whole number from 0 to 9223372036854775807") and not (tmp_path / "x").exists()


def test_plans_and_specs_take_them_too(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(f"jobs: [{{concept: neon, seed: [0, {MAX_SEED}]}}]")
    specs = load_plan(path).jobs
    assert [spec.seed for spec in specs] == [0, MAX_SEED]
    specs[1].save(tmp_path / "spec.json")
    assert JobSpec.load(tmp_path / "spec.json").seed == MAX_SEED
    for wrong in (MAX_SEED + 1, -1):
        path.write_text(f"jobs: [{{concept: neon, seed: {wrong}}}]")
        with pytest.raises(UserError, match=r"seed must be (less|greater) than"):
            load_plan(path)
        (tmp_path / "spec.json").write_text(json.dumps({**specs[0].record(), "seed": wrong}))
        with pytest.raises(UserError, match=r"seed must be (less|greater) than"):
            JobSpec.load(tmp_path / "spec.json")
