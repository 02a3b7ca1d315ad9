"""Shared parts of the stages of scripts/train_pocket.py: settings, training loop, captions and latents."""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTokenizer

from erasure.config.seeds import derive_seed
from erasure.families.precision import resolve_precision
from erasure.pocket.canvas import OBJECTS, STYLES, ImageSpec, traits_of
from erasure.pocket.captions import make_caption
from erasure.pocket.styles import render

CONTEXT = 32  # tokens
CELLS = [(o, s) for s in STYLES for o in OBJECTS]


class TrainingSetup:
    """Folders, device and images of a training run.

    Args:
        args: The parsed command line of train_pocket.py or train_retrained.py.
        without: A style or an object to exclude from all images and captions.
    """

    def __init__(self, args: argparse.Namespace, without: str = "") -> None:
        self.work, self.out = Path(args.work), Path(args.out)
        self.device = torch.device(args.device)
        self.args = args
        self.work.mkdir(parents=True, exist_ok=True)
        cells = [cell for cell in CELLS if without not in cell]
        first_seed = args.seed * 1_000_000  # runs with different seeds share no image
        self.canvas_images = [ImageSpec(*cells[i % len(cells)], seed=first_seed + i // len(cells)) for i in range(args.images)]
        self.image_traits = [traits_of(spec) for spec in self.canvas_images]

    def autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.device)

    def captions(self, rows: list[int], salt: int) -> list[str]:
        return [make_caption(self.canvas_images[i], self.image_traits[i], random.Random(f"{salt}|{i}")) for i in rows]

    def rows(self, step: int, batch: int) -> list[int]:
        """Return the image indices of a step. They depend on the step alone, so a resumed run sees the same images."""
        return random.Random(f"{self.args.seed}|{step}").sample(range(len(self.canvas_images)), batch)


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Use bf16 where the machine computes it natively, else fp32: emulated, a step takes ten times as long."""
    native = resolve_precision("auto", device) is torch.bfloat16
    return torch.autocast(device.type, dtype=torch.bfloat16) if native else nullcontext()


def fit(
    setup: TrainingSetup,
    name: str,
    model: nn.Module,
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    ema: float | None = None,
    preview: Callable[[nn.Module, int], None] | None = None,
    optimizers: list[torch.optim.Optimizer] | None = None,
    schedule: Callable[[float, int, int], float] | None = None,
) -> None:
    """Train with a checkpoint every 200 steps; `model` ends with the EMA weights.

    Args:
        optimizers: AdamW of all parameters if none are given.
        schedule: from (lr, step, steps) to the learning rate of a step; `cosine_lr` if none is given.
    """
    schedule = schedule or cosine_lr
    optimizers = optimizers or [torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.99))]
    ema_model = EMAModel(model.parameters(), decay=ema, use_ema_warmup=True, power=0.75) if ema else None
    checkpoint, first_step = setup.work / f"{name}.pt", 0
    if checkpoint.exists():
        first_step = load_checkpoint(checkpoint, model, optimizers, ema_model, setup.device)
    log = (setup.work / f"{name}.jsonl").open("a")
    start = time.monotonic()
    bar = tqdm(range(first_step, steps), initial=first_step, total=steps, desc=name, mininterval=10)
    for step in bar:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = schedule(lr, step, steps)
        torch.manual_seed(derive_seed(setup.args.seed, step))
        value = loss(step)
        model.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if ema_model:
            ema_model.step(model.parameters())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{value.item():.4f}", refresh=False)
            log.write(json.dumps({"step": step, "loss": value.item(), "seconds": round(time.monotonic() - start, 1)}) + "\n")
            log.flush()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers], "step": step + 1}
            torch.save({**state, "ema": ema_model.state_dict() if ema_model else None}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
        if preview and (step + 1) % 600 == 0:
            with ema_weights(ema_model, model):
                preview(model, step + 1)
    if ema_model:
        ema_model.copy_to(model.parameters())


def load_checkpoint(
    path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], ema_model: EMAModel | None, device: torch.device
) -> int:
    """Put everything back to where it was saved, and return the next step."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    if ema_model:
        ema_model.load_state_dict(state["ema"])
        ema_model.to(device)
    step: int = state["step"]
    return step


def constant_then_decaying_lr(lr: float, step: int, steps: int) -> float:
    """Return the learning rate of a step: 100 steps of warm-up, constant, and a linear decay over the last quarter.

    Until then it does not depend on `steps`, so a training can be made longer after it was started.
    """
    return lr * min(1.0, (step + 1) / 100, 4 * (1 - step / steps) + 0.01)


def cosine_lr(lr: float, step: int, steps: int) -> float:
    """Return the learning rate of a step: 100 steps of linear warm-up, and cosine decay to 2% of `lr`."""
    warmup, fraction_done = min(1.0, (step + 1) / 100), step / steps
    return lr * warmup * max(0.02, 0.5 * (1 + torch.cos(torch.tensor(fraction_done * torch.pi)).item()))


@contextmanager
def ema_weights(ema_model: EMAModel | None, model: nn.Module) -> Iterator[None]:
    """Put the EMA weights into a model for a while; does nothing without EMA."""
    if ema_model:
        ema_model.store(model.parameters())
        ema_model.copy_to(model.parameters())
    yield
    if ema_model:
        ema_model.restore(model.parameters())


def render_training_images(setup: TrainingSetup) -> Tensor:
    """Return all training images, uint8 [N, 3, 64, 64], rendered once."""
    path = setup.work / f"images-{len(setup.canvas_images)}.safetensors"
    if not path.exists():
        chunks = [render(setup.canvas_images[i : i + 900]) for i in tqdm(range(0, len(setup.canvas_images), 900), desc="images")]
        save_file({"images": (torch.cat(chunks) * 255).round().byte()}, path)
    return load_file(path)["images"]


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    return tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids


def contrastive_loss(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss of embeddings [B, D] (Radford et al., arXiv:2103.00020, figure 3)."""
    logits = scale.exp().clamp(max=100) * F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T
    labels = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def encode_latents(setup: TrainingSetup, data: Tensor, vae: AutoencoderKL) -> Tensor:
    """Encode uint8 images [N, 3, 64, 64] to scaled fp16 latents [N, 4, 16, 16]."""
    with torch.no_grad(), setup.autocast():
        chunks = [vae.encode(part.to(setup.device).float() / 127.5 - 1).latent_dist.mean for part in tqdm(data.split(256), desc="latents")]
    return (torch.cat(chunks).float() * vae.config.scaling_factor).half().cpu().contiguous()


def decode_latents(pipeline: StableDiffusionPipeline, latents: Tensor) -> Tensor:
    """Decode scaled latents [N, 4, 16, 16] to images [N, 3, 64, 64] in [0, 1]."""
    vae = pipeline.vae
    with torch.no_grad(), autocast(vae.device):
        parts = [vae.decode(z.to(vae.device) / vae.config.scaling_factor).sample.float().cpu() for z in latents.split(128)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1).contiguous()
