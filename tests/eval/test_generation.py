"""Images on disk: batch sizes, temporary files that no other process shares, and latents with NaN."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from erasure.errors import NotFiniteError, UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.training.fill_cache import load_or_compute
from eval import generation
from eval.attack_runs.attack_run import chunk_size
from eval.attack_runs.saved_rows import load_or_prepare
from eval.generation import batch_size_of, generate_from_prompts, generate_images, samples_of, save_png
from eval.suites.cases import suite_cases
from tests.factories import small_suite


@pytest.mark.parametrize(("side", "batch_size", "chunk"), [(8, 45, 10), (16, 45, 10), (64, 8, 8), (96, 3, 3), (512, 1, 1)])
def test_large_latents_are_generated_in_smaller_batches(model: StableDiffusion, side: int, batch_size: int, chunk: int) -> None:
    """45 for pocket's latents of 16x16 and 8 for Stable Diffusion's of 64x64, on every machine."""
    model.latent_shape = (4, side, side)
    assert (batch_size_of(model), chunk_size(model)) == (batch_size, chunk)


def test_images_are_generated_in_those_batches(model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "MAX_BATCH_POSITIONS", 3 * 8 * 8)
    suite = small_suite()
    batch_sizes: list[int] = []
    samples = samples_of(suite, suite_cases(suite, [], "smoke"))[:5]
    sample_noise = model.sample_noise

    def counted_noise(seeds: Sequence[int]) -> Tensor:
        batch_sizes.append(len(seeds))
        return sample_noise(seeds)

    monkeypatch.setattr(model, "sample_noise", counted_noise)
    assert generate_images(model, "w", suite, samples, tmp_path / "images") == 5
    assert batch_sizes == [3, 2]


def test_temporary_files_of_other_processes_stay(model: StableDiffusion, tmp_path: Path) -> None:
    """Shards and audits that run at once write the same files; with one temporary name, one would take the file of the other."""
    temporary = tmp_path / "one.tmp"
    temporary.write_bytes(b"half of it")
    save_png(torch.zeros(3, 2, 2, dtype=torch.uint8), tmp_path / "one.png")
    assert torch.equal(load_or_prepare(tmp_path / "one.safetensors", lambda: {"x": torch.arange(3)})["x"], torch.arange(3))
    assert torch.equal(load_or_prepare(tmp_path / "one.safetensors", dict)["x"], torch.arange(3))
    assert temporary.read_bytes() == b"half of it"
    load_or_compute(model, {"key": 1}, lambda: {"x": torch.ones(2)})
    (path,) = tmp_path.glob("cache/tensors/*")
    other = path.with_suffix(".tmp")
    path.unlink()
    other.write_bytes(b"half of it")
    assert torch.equal(load_or_compute(model, {"key": 1}, lambda: {"x": torch.ones(2)})["x"], torch.ones(2))
    assert other.read_bytes() == b"half of it" and not list(tmp_path.rglob("*.part"))


def test_latents_with_nan_give_no_image(pocket_sized_model: StableDiffusion, tmp_path: Path) -> None:
    """As integers they would be black, and a black image shows no concept."""
    with torch.no_grad():
        pocket_sized_model.pipe.unet.conv_out.bias[0] = torch.nan
    with pytest.raises(NotFiniteError, match=r"because its weights hold them, such as unet\.conv_out\.bias"):
        generate_from_prompts(pocket_sized_model, ["neon"], [1], 2, 4.0)
    suite = small_suite()
    with pytest.raises(UserError, match=r"model erased of the audit: .* gives NaN or Inf .its latents after timestep"):
        generate_images(pocket_sized_model, "w", suite, samples_of(suite, suite_cases(suite, [], "smoke"))[:2], tmp_path / "erased")
    assert not list(tmp_path.rglob("*.png"))
