"""The judge stages of scripts/train_pocket.py: style and object classifiers, and the open_clip model for alignment."""

import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from open_clip import CLIP
from pocket_training import CELLS, CONTEXT, TrainingSetup, autocast, contrastive_loss, decode_latents, encode_latents, fit, tokenize
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from erasure.pocket.canvas import ImageSpec, traits_of
from erasure.pocket.captions import make_caption
from erasure.pocket.classifier import LABELS, PocketClassifier

OPEN_CLIP = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": CONTEXT, "width": 96, "heads": 4, "layers": 2, "hf_tokenizer_name": "pocket"},
}


def make_broken_training_images(pipeline: StableDiffusionPipeline, images: Tensor, count: int, seed: int) -> Tensor:
    """Return images without content, [count, 3, 64, 64] in [0, 1]: noise, blurs, blends, half-denoised and decoded random latents."""
    torch.manual_seed(seed)
    fifth = count // 5
    picked = [images[torch.randint(len(images), (fifth,))].float() / 255 for _ in range(4)]
    level = torch.rand(fifth, 1, 1, 1)
    noise = (level * torch.rand(fifth, 3, 1, 1) + (1 - level) * torch.rand(fifth, 3, 64, 64)).clamp(0, 1)
    blur = torch.stack(
        [F.interpolate(F.avg_pool2d(x[None], k), 64, mode="bilinear")[0] for x, k in zip(picked[0], [16, 32] * fifth, strict=False)]
    )
    blend = torch.stack(picked[1:]).mean(0)
    blend = torch.stack([x.roll((random.Random(i).randrange(64), random.Random(-i).randrange(64)), (1, 2)) for i, x in enumerate(blend)])
    half_denoised_images = generate_half_denoised(pipeline, fifth, seed)
    z = torch.randn(count - 4 * fifth, 4, 16, 16) * (0.3 + torch.rand(count - 4 * fifth, 1, 1, 1))
    return torch.cat((noise, blur, blend, half_denoised_images, decode_latents(pipeline, z)))


def generate_half_denoised(pipeline: StableDiffusionPipeline, count: int, seed: int) -> Tensor:
    """Return guided samples stopped after 1 to 9 of 25 steps: [count, 3, 64, 64] in [0, 1]."""
    rng, latents = random.Random(seed), []
    texts = [make_caption(ImageSpec(*rng.choice(CELLS), seed=i), traits_of(ImageSpec("boat", "neon", i)), rng) for i in range(count)]
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, 90):
        step_latents: list[Tensor] = []
        with autocast(pipeline.device):
            pipeline(
                texts[start : start + 90],
                num_inference_steps=25,
                guidance_scale=4.0,
                height=64,
                width=64,
                output_type="latent",
                generator=generator,
                callback_on_step_end=lambda p, i, t, kw, step_latents=step_latents: (
                    step_latents.append(kw["latents"].cpu()) or stop_after(p, i)
                ),
            )
        steps = torch.tensor([rng.randrange(9) for _ in range(len(step_latents[0]))])
        latents.append(torch.stack(step_latents)[steps, torch.arange(len(steps))])
    return decode_latents(pipeline, torch.cat(latents).float())


def stop_after(pipeline: StableDiffusionPipeline, index: int) -> dict:
    pipeline._interrupt = index >= 9
    return {}


def train_judges(setup: TrainingSetup, data: Tensor) -> None:
    """Train a style and an object classifier on rendered images, their VAE round trips, and broken images as "none"."""
    folder = setup.out / "judges"
    folder.mkdir(exist_ok=True)
    pipeline = StableDiffusionPipeline.from_pretrained(setup.out, torch_dtype=torch.float32).to(setup.device)
    pipeline.set_progress_bar_config(disable=True)
    missing = [axis for axis in LABELS if not (folder / f"{axis}.safetensors").exists()]
    if not missing:
        return
    round_trips_path, broken_path = setup.work / "trips.safetensors", setup.work / "broken.safetensors"
    if not broken_path.exists():
        latents = encode_latents(setup, data[:4500], pipeline.vae).float()
        save_file({"images": (decode_latents(pipeline, latents) * 255).round().byte()}, round_trips_path)
        save_file(
            {"images": (make_broken_training_images(pipeline, data, setup.args.broken, setup.args.seed) * 255).round().byte()}, broken_path
        )
    round_trips, broken_images = load_file(round_trips_path)["images"], load_file(broken_path)["images"]
    for axis in missing:
        train_judge(setup, axis, data, round_trips, broken_images, folder)


def train_judge(setup: TrainingSetup, axis: str, data: Tensor, round_trips: Tensor, broken_images: Tensor, folder: Path) -> None:
    labels = LABELS[axis]
    truth = torch.tensor([labels.index(getattr(spec, axis)) for spec in setup.canvas_images])
    torch.manual_seed(setup.args.seed)
    classifier = PocketClassifier(len(labels)).to(setup.device, memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        rng = random.Random(f"{axis}|{step}")
        rows, round_trip_rows, broken_rows = (
            rng.sample(range(len(data)), 56),
            rng.sample(range(len(round_trips)), 56),
            rng.sample(range(len(broken_images)), 16),
        )
        x = torch.cat((data[rows], round_trips[round_trip_rows], broken_images[broken_rows])).to(setup.device).float() / 255
        y = torch.cat((truth[rows], truth[round_trip_rows], torch.full((16,), len(labels) - 1))).to(setup.device)
        x = x + torch.rand(len(x), 1, 1, 1, device=x.device) * 0.03 * torch.randn_like(x)
        with setup.autocast():
            logits = classifier(x.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), y, label_smoothing=0.02)

    fit(setup, f"judge-{axis}", classifier, loss, steps=setup.args.judge_steps, lr=2e-3, ema=0.99)
    save_file(
        {name: p.half().contiguous() for name, p in classifier.state_dict().items()},
        folder / f"{axis}.safetensors",
        metadata={"labels": ",".join(labels)},
    )


def train_open_clip(setup: TrainingSetup, data: Tensor, tokenizer: CLIPTokenizer) -> None:
    """Train an independent open_clip model in local-dir layout, for CLIP alignment: another shape, another seed, other captions."""
    folder = setup.out / "open_clip"
    if (folder / "open_clip_model.safetensors").exists():
        return
    torch.manual_seed(setup.args.seed + 1)
    config = json.loads(json.dumps(OPEN_CLIP))
    config["text_cfg"]["vocab_size"] = len(tokenizer)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "size": 64}
    model = CLIP(**config, output_dict=True)
    model = model.to(setup.device)

    def loss(step: int) -> Tensor:
        rows = setup.rows(step + 500_000, 128)
        x = data[rows].to(setup.device).float() / 127.5 - 1
        ids = tokenize(tokenizer, setup.captions(rows, salt=step + 500_000)).to(setup.device)
        with setup.autocast():
            out = model(x, ids)
        return contrastive_loss(out["image_features"], out["text_features"], model.logit_scale)

    fit(setup, "open_clip", model, loss, steps=setup.args.clip_steps, lr=1e-3)
    folder.mkdir(exist_ok=True)
    tokenizer.save_pretrained(folder)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2))
    save_file({name: p.half().contiguous() for name, p in model.state_dict().items()}, folder / "open_clip_model.safetensors")
