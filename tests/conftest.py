import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports the hub's client, which reads it once
import gc
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from erasure.concept import Concept
from erasure.edits import Edit
from erasure.export import model_card
from erasure.families.stable_diffusion import StableDiffusion
from tests import tiny

gc.set_threshold(100_000, *gc.get_threshold()[1:])  # as in app.process: the libraries create millions of objects that stay


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test fills an empty cache of its own."""
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


@pytest.fixture(scope="session", autouse=True)
def quick_card_images() -> Iterator[None]:
    """The images on a model card take few steps; every erasure makes four."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_card, "IMAGE_STEPS", 3)
        yield


@pytest.fixture
def model() -> StableDiffusion:
    return StableDiffusion(tiny.pipeline(), "tiny", "fp32")


@pytest.fixture
def velocity_model() -> StableDiffusion:
    return StableDiffusion(tiny.pipeline(prediction="v_prediction"), "tiny-v", "fp32")


@pytest.fixture
def pocket_sized_model() -> StableDiffusion:
    """A tiny model whose latents and images have pocket's size."""
    return StableDiffusion(tiny.pipeline(size=16, levels=3), "tiny", "fp32")


@pytest.fixture
def neon_edit(pocket_sized_model: StableDiffusion, tmp_path: Path) -> Edit:
    """An edit of neon on `pocket_sized_model`, saved in tmp_path / "edit"."""
    from tests.factories import erase_on_small_latents

    return erase_on_small_latents(pocket_sized_model, [Concept(name="neon", kind="style")], tmp_path / "edit")


@pytest.fixture
def frequent_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings write a checkpoint every second step."""
    from erasure import erasing

    monkeypatch.setattr(erasing, "TrainingOptions", partial(erasing.TrainingOptions, checkpoint_every=2))
