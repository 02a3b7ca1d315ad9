"""SalUn's mask against sorting, and the masked training against its equation."""

import struct
import zlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from erasure import user_images
from erasure.concept import Concept
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.base import TrainingContext
from erasure.methods.salun import SalUn
from erasure.training import fill_cache, saliency

CAT = [Concept(name="cat", kind="object", prompts=("{}",), anchor="dog")]
SMALL = {"trajectories": 3, "trajectory_steps": 2, "retain_prompts": ("the sea",), "retain_trajectories": 2, "batch": 2, "retain_batch": 2}


def gradients() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"unet.down_blocks.{i}.x.weight": torch.randn(40, 25, generator=generator) * 10.0**-i for i in range(3)}


@pytest.mark.parametrize("threshold", ["kthvalue", "histogram"])
@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.9, 1.0])
def test_the_mask_holds_the_largest_of_all_together(threshold: saliency.ThresholdMethod, fraction: float) -> None:
    masks = saliency.select_top(gradients(), fraction, threshold)
    everything = torch.cat([g.abs().flatten() for g in gradients().values()])
    chosen = torch.cat([mask.flatten() for mask in masks.values()])
    assert chosen.float().mean().item() == pytest.approx(fraction, abs=0.002)
    if fraction < 1:
        assert everything[chosen].min() > 0.99 * everything[~chosen].max()
    assert masks["unet.down_blocks.0.x.weight"].float().mean() >= masks["unet.down_blocks.2.x.weight"].float().mean()


def test_both_thresholds_agree() -> None:
    a, b = (saliency.select_top(gradients(), 0.5, t) for t in ("kthvalue", "histogram"))  # type: ignore[arg-type]
    differing = sum(int((a[n] != b[n]).sum()) for n in a)
    assert differing <= 3


def test_masks_are_stored_as_bits(tmp_path: Path) -> None:
    masks = saliency.select_top(gradients(), 0.3, "kthvalue")
    saliency.save_mask(masks, tmp_path / "mask.safetensors")
    parameters = {n: torch.nn.Parameter(torch.zeros(m.shape)) for n, m in masks.items()}
    loaded = saliency.load_mask(tmp_path / "mask.safetensors", parameters)
    assert all(torch.equal(loaded[n], masks[n]) for n in masks)
    assert (tmp_path / "mask.safetensors").stat().st_size < 3000 / 8 + 600


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="--mask-fraction"):
        saliency.select_top(gradients(), fraction, "kthvalue")


def test_a_mask_that_selects_nothing_is_refused(tmp_path: Path) -> None:
    zero = {n: torch.zeros_like(g) for n, g in gradients().items()}
    with pytest.raises(UserError, match="selects nothing"):
        saliency.select_top(zero, 0.5, "histogram")
    saliency.save_mask({n: g.bool() for n, g in zero.items()}, tmp_path / "mask.safetensors")
    with pytest.raises(UserError, match="selects nothing"):
        saliency.load_mask(tmp_path / "mask.safetensors", {n: torch.nn.Parameter(g) for n, g in zero.items()})
    with pytest.raises(UserError, match="another model"):
        saliency.load_mask(tmp_path / "mask.safetensors", {n: torch.nn.Parameter(g[:3]) for n, g in zero.items()})
    (tmp_path / "broken").write_bytes(b"no mask")
    with pytest.raises(UserError, match="is not a saliency mask"):
        saliency.load_mask(tmp_path / "broken", {})


def test_fractions_are_by_block() -> None:
    fractions = {
        "unet.down_blocks.1.attentions.0.x.weight": 0.25,
        "unet.mid_block.x.weight": 0.5,
        "text_encoder.encoder.layers.2.x.bias": 1.0,
    }
    masks = {name: torch.arange(4) < 4 * fraction for name, fraction in fractions.items()}
    assert saliency.selected_fractions(masks) == {"text_encoder.layers.2": 1.0, "unet.down_blocks.1": 0.25, "unet.mid_block": 0.5}


def context_of(model: StableDiffusion, method: SalUn) -> TrainingContext:
    cache = fill_cache.load_or_fill(model, method.query(CAT, 0))
    return TrainingContext(model, cache, model.encode)


def test_the_mask_is_of_the_summed_gradient(model: StableDiffusion) -> None:
    """An independent sum: one backward pass over all images at once, with the weights of a mean over batches."""
    method = SalUn(**{**SMALL, "trajectories": 4}, mask_fraction=0.3, mask_threshold="kthvalue", region="xattn", mask_scope="region")  # type: ignore[arg-type]
    context = context_of(model, method)
    with method.trainable(model) as groups:
        torch.manual_seed(5)
        method.prepare(context, groups)
        torch.manual_seed(5)
        total = torch.zeros(())
        for part in context.cache.latent_rows("erase").split(2):
            latents = context.cache.gather_latents(part, model.device)
            noise, t = torch.randn(latents.x_0.shape), torch.randint(1000, (2,))
            abar = model.schedule.scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
            x_t = abar.sqrt() * latents.x_0 + (1 - abar).sqrt() * noise
            guided = 8.5 * context.predict(x_t, t, latents.prompts) - 7.5 * context.predict(x_t, t, ["", ""])
            total = total - (guided - noise).square().mean()
        names = list(groups["model"].parameters)
        gradients = torch.autograd.grad(total, list(groups["model"].parameters.values()))
    limit = torch.cat([g.abs().flatten() for g in gradients]).quantile(0.7)
    for name, g in zip(names, gradients, strict=True):
        clear = (g.abs() - limit).abs() > 0.01 * limit
        assert torch.equal(context.masks[name][clear], (g.abs() > limit)[clear])


def test_the_loss_is_random_labeling_plus_retain(model: StableDiffusion) -> None:
    method = SalUn(**SMALL, retain_weight=0.3)  # type: ignore[arg-type]
    context = context_of(model, method)
    torch.manual_seed(3)
    (optimizer_step,) = method.step(context)
    torch.manual_seed(3)
    erase = context.sample_latents("erase", 2)
    assert (erase.prompts, erase.neutral_prompts) == (["cat"] * 2, ["dog"] * 2)
    losses = []
    for latents, target in ((erase, "anchor"), (None, "noise")):
        batch = latents or context.sample_latents("retain", 2)
        noise, t = torch.randn(batch.x_0.shape), torch.randint(1000, (2,))
        x_t = model.schedule.scheduler.add_noise(batch.x_0, noise, t)
        goal = model.predict(x_t, t, model.encode(batch.neutral_prompts)) if target == "anchor" else noise
        losses.append(F.mse_loss(model.predict(x_t, t, model.encode(batch.prompts)), goal))
    assert torch.allclose(optimizer_step.loss, losses[0] + 0.3 * losses[1], atol=1e-6)


def test_real_images_replace_generated_ones(model: StableDiffusion, tmp_path: Path) -> None:
    from PIL import Image

    for i in range(3):
        Image.new("RGB", (20, 30), (80 * i, 10, 200)).save(tmp_path / f"{i}.png")
    method = SalUn(**SMALL, images=str(tmp_path))  # type: ignore[arg-type]
    cache = fill_cache.load_or_fill(model, method.query(CAT, 0))
    assert len(cache.latent_rows("erase")) == 3
    assert len(cache.latent_rows("retain")) == 2
    with pytest.raises(UserError, match="holds no images"):
        fill_cache.load_or_fill(model, SalUn(**SMALL, images=str(tmp_path / "none")).query(CAT, 0))  # type: ignore[arg-type]


def test_broken_and_monstrous_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(UserError, match=r"text\.png is not a readable image"):
        user_images.load_image(tmp_path / "text.png")
    for width, height in ((40_000, 25_000), (12_000, 10_000)):  # claims of 10^9 and 1.2 x 10^8 pixels in a few bytes
        head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
        (tmp_path / "bomb.png").write_bytes(
            b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
        )
        with pytest.raises(UserError, match=r"bomb\.png"):
            user_images.load_image(tmp_path / "bomb.png")
