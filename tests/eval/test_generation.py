"""Pictures on disk: how many are drawn together, drafts that no other process shares, and pictures that are no numbers."""

from pathlib import Path

import pytest
import torch

from erasure.errors import NotFiniteError, UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.training.fill_cache import load_or_compute
from eval import generation as samples
from eval.attack_runs.runner import chunk_size, load_or_prepare
from eval.generation import batch_size_of, generate_from_prompts, generate_images, samples_of, save_png
from eval.suites.cases import suite_cases
from tests.eval.test_audit import big, tiny_suite  # noqa: F401  # a fixture


@pytest.mark.parametrize(("side", "together", "attacked"), [(8, 45, 10), (16, 45, 10), (64, 8, 8), (96, 3, 3), (512, 1, 1)])
def test_large_latents_are_drawn_fewer_at_a_time(model: StableDiffusion, side: int, together: int, attacked: int) -> None:
    """45 for pocket's latents of 16 and 8 for Stable Diffusion's of 64, whatever the machine."""
    model.latent_shape = (4, side, side)
    assert (batch_size_of(model), chunk_size(model)) == (together, attacked)


def test_pictures_are_drawn_in_those_batches(model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_BATCH_POSITIONS", 3 * 8 * 8)
    suite, asked = tiny_suite(), []
    todo = samples_of(suite, suite_cases(suite, [], "smoke"))[:5]
    noise = model.sample_noise
    monkeypatch.setattr(model, "sample_noise", lambda seeds: asked.append(len(seeds)) or noise(seeds))
    assert generate_images(model, "w", suite, todo, tmp_path / "images") == 5
    assert asked == [3, 2]


def test_nobody_elses_draft_is_touched(model: StableDiffusion, tmp_path: Path) -> None:
    """Shards and audits that run at once write the same files; a draft under one shared name would be taken from under the other."""
    draft = tmp_path / "one.tmp"
    draft.write_bytes(b"half of it")
    save_png(torch.zeros(3, 2, 2, dtype=torch.uint8), tmp_path / "one.png")
    assert torch.equal(load_or_prepare(tmp_path / "one.safetensors", lambda: {"x": torch.arange(3)})["x"], torch.arange(3))
    assert torch.equal(load_or_prepare(tmp_path / "one.safetensors", dict)["x"], torch.arange(3))
    assert draft.read_bytes() == b"half of it"
    load_or_compute(model, {"what": 1}, lambda: {"x": torch.ones(2)})
    (place,) = tmp_path.glob("cache/tensors/*")
    other = place.with_suffix(".tmp")
    place.unlink()
    other.write_bytes(b"half of it")
    assert torch.equal(load_or_compute(model, {"what": 1}, lambda: {"x": torch.ones(2)})["x"], torch.ones(2))
    assert other.read_bytes() == b"half of it" and not list(tmp_path.rglob("*.part"))


def test_pictures_that_are_no_numbers_are_no_pictures(big: StableDiffusion, tmp_path: Path) -> None:  # noqa: F811
    """As integers they would be black, and a black picture shows no concept."""
    with torch.no_grad():
        big.pipe.unet.conv_out.bias[0] = torch.nan
    with pytest.raises(NotFiniteError, match=r"because its weights hold them, such as unet\.conv_out\.bias"):
        generate_from_prompts(big, ["neon"], [1], 2, 4.0)
    suite = tiny_suite()
    with pytest.raises(UserError, match=r"model erased of the audit: .* gives NaN or Inf .its latents after timestep"):
        generate_images(big, "w", suite, samples_of(suite, suite_cases(suite, [], "smoke"))[:2], tmp_path / "erased")
    assert not list(tmp_path.rglob("*.png"))
