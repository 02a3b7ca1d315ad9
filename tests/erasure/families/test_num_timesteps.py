"""The number of training timesteps is that of the model's scheduler, in every method and attack."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families import supported_models
from erasure.families.stable_diffusion import StableDiffusion
from eval.attacks.concept_inversion import ConceptInversion
from eval.attacks.relearning import Relearning
from eval.attacks.unlearndiffatk import UnlearnDiffAtk
from tests import tiny
from tests.eval.factories import inversion_context
from tests.factories import CAT, small_method

COUNT = 40


@pytest.fixture
def short_model(monkeypatch: pytest.MonkeyPatch) -> StableDiffusion:
    """A model trained on 40 timesteps, which no supported family is."""
    monkeypatch.setattr(supported_models, "TRAIN_TIMESTEPS", COUNT)
    pipe = tiny.pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, num_train_timesteps=COUNT)
    return StableDiffusion(pipe, "short", "fp32")


@pytest.fixture
def timesteps(short_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every timestep to which the model adds noise."""
    seen: list[int] = []
    add_noise = short_model.add_noise

    def record(x_0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.extend(t.tolist())
        return add_noise(x_0, noise, t)

    monkeypatch.setattr(short_model, "add_noise", record)
    return seen


def covers_the_schedule(timesteps: list[int]) -> bool:
    """They reach the last tenth of the schedule; all of them exist, or adding noise would have failed."""
    return len(timesteps) > 20 and min(timesteps) >= 0 and 0.9 * COUNT <= max(timesteps) < COUNT


def test_it_is_that_of_the_usual_models(model: StableDiffusion) -> None:
    assert model.num_timesteps == len(model.schedule.alphas_cumprod) == 1000


def test_it_is_the_schedulers(short_model: StableDiffusion) -> None:
    assert short_model.num_timesteps == len(short_model.schedule.alphas_cumprod) == COUNT
    x = short_model.sample_noise([0])
    with pytest.raises(UserError, match="can be sampled in 1 to 40 steps, got 41"):
        next(short_model.trajectory(x, *(short_model.encode([""]),) * 2, COUNT + 1, 1.0))


def test_salun_draws_from_the_whole_schedule(short_model: StableDiffusion, timesteps: list[int], tmp_path: Path) -> None:
    erase(short_model, CAT, small_method("salun", steps=12), out=tmp_path / "run")
    assert covers_the_schedule(timesteps)


def test_a_generator_is_noised_over_the_whole_schedule(short_model: StableDiffusion, timesteps: list[int], tmp_path: Path) -> None:
    schedule = {"init_timestep": 25, "min_timestep": 2, "max_timestep": 38}
    generator = tmp_path / "generator"
    erase(short_model, CAT, small_method("sfd", **schedule), out=generator)
    timesteps.clear()
    erase(short_model, CAT, small_method("sfd_matching", generator=str(generator), noise_levels=10), out=tmp_path / "run")
    assert covers_the_schedule(timesteps)


@pytest.mark.parametrize("name", ["init_timestep", "min_timestep", "max_timestep"])
def test_a_generator_needs_timesteps_of_the_schedule(short_model: StableDiffusion, name: str, tmp_path: Path) -> None:
    schedule: dict[str, Any] = {"init_timestep": 25, "min_timestep": 2, "max_timestep": 38, name: COUNT}
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} must be below 40, the timesteps of short, got 40"):
        erase(short_model, CAT, small_method("sfd", **schedule), out=tmp_path / "run")


def test_attacks_draw_from_the_whole_schedule(short_model: StableDiffusion, timesteps: list[int]) -> None:
    context = inversion_context(short_model)
    timesteps.clear()
    ConceptInversion(steps=12, batch=4).fit(context, {})
    assert covers_the_schedule(timesteps)
    timesteps.clear()
    list(Relearning(steps=12, checkpoints=1, batch=4).fine_tune(context))
    assert covers_the_schedule(timesteps)
    timesteps.clear()
    list(UnlearnDiffAtk(tokens=1, steps=8, t_min=1).queries(context, (0,), {}))
    assert timesteps == [1, 1, 1, 1, 21, 21, 21, 21]
    with pytest.raises(UserError, match="t_min is a timestep from 0 to 39, got 40"):
        next(UnlearnDiffAtk(tokens=1, steps=8, t_min=COUNT).queries(context, (0,), {}))
