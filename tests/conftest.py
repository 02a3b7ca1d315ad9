from collections.abc import Iterator
from pathlib import Path

import pytest

from erasure.families.stable_diffusion import StableDiffusion
from tests import tiny


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test records and draws into an empty cache of its own."""
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


@pytest.fixture
def model() -> StableDiffusion:
    return StableDiffusion(tiny.pipeline(), "tiny", "fp32")


@pytest.fixture
def velocity_model() -> StableDiffusion:
    return StableDiffusion(tiny.pipeline(prediction="v_prediction"), "tiny-v", "fp32")
