"""Train the pocket model and its judges from nothing, on a CPU or a GPU, in one resumable command.

    python scripts/train_pocket.py --work runs/pocket --out erasure/pocket/weights

Stages, each skipped when its result is there: images, vae, text (BPE tokenizer and contrastive text encoder), unet, judges,
open_clip. A stage that was interrupted continues from its last checkpoint. Logs and sample grids go to the work folder.
"""

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel, compute_snr
from open_clip import CLIP
from safetensors.torch import load_file, save_file
from tokenizers import models, pre_tokenizers, trainers
from torch import Tensor, nn
from torchvision.utils import save_image
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from erasure.pocket.canvas import OBJECTS, STYLES, Picture, render, traits
from erasure.pocket.captions import NAMED, OBJECT_WORDS, STYLE_WORDS, caption
from erasure.pocket.reader import LABELS, Reader

CONTEXT = 32  # tokens
CELLS = [(o, s) for s in STYLES for o in OBJECTS]


class Workshop:
    """Where the training happens: folders, device, sizes."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.work, self.out = Path(args.work), Path(args.out)
        self.device = torch.device(args.device)
        self.args = args
        self.work.mkdir(parents=True, exist_ok=True)
        self.pictures = [Picture(*CELLS[i % len(CELLS)], seed=i // len(CELLS)) for i in range(args.images)]
        self.seen = [traits(picture) for picture in self.pictures]

    @contextmanager
    def autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            yield

    def captions(self, rows: list[int], salt: int) -> list[str]:
        return [caption(self.pictures[i], self.seen[i], random.Random(f"{salt}|{i}")) for i in rows]

    def rows(self, step: int, batch: int) -> list[int]:
        """The pictures of a step: a function of the step alone, so a resumed run sees what a straight run saw."""
        return random.Random(f"{self.args.seed}|{step}").sample(range(len(self.pictures)), batch)


def fit(
    shop: Workshop,
    name: str,
    model: nn.Module,
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    ema: float | None = None,
    preview: Callable[[nn.Module, int], None] | None = None,
) -> None:
    """AdamW with warm-up and cosine decay; checkpoints every 200 steps; leaves the EMA weights in `model`."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.99))
    average = EMAModel(model.parameters(), decay=ema, use_ema_warmup=True, power=0.75) if ema else None
    checkpoint, first = shop.work / f"{name}.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        if average:
            average.load_state_dict(state["ema"])
            average.to(shop.device)
        first = state["step"]
    log = (shop.work / f"{name}.jsonl").open("a")
    begun = time.monotonic()
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=name, mininterval=10)
    for step in bar:
        warm, progress = min(1.0, (step + 1) / 100), step / steps
        for group in optimiser.param_groups:
            group["lr"] = lr * warm * max(0.02, 0.5 * (1 + torch.cos(torch.tensor(progress * torch.pi)).item()))
        torch.manual_seed(shop.args.seed * 1_000_003 + step)
        value = loss(step)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if average:
            average.step(model.parameters())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{value.item():.4f}", refresh=False)
            log.write(json.dumps({"step": step, "loss": value.item(), "seconds": round(time.monotonic() - begun, 1)}) + "\n")
            log.flush()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
            torch.save({**state, "ema": average.state_dict() if average else None}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
        if preview and (step + 1) % 600 == 0:
            if average:
                average.store(model.parameters())
                average.copy_to(model.parameters())
            preview(model, step + 1)
            if average:
                average.restore(model.parameters())
    if average:
        average.copy_to(model.parameters())


def images(shop: Workshop) -> Tensor:
    """All training pictures (N, 3, 64, 64) uint8, rendered once."""
    path = shop.work / f"images-{len(shop.pictures)}.safetensors"
    if not path.exists():
        chunks = [render(shop.pictures[i : i + 900]) for i in tqdm(range(0, len(shop.pictures), 900), desc="images")]
        save_file({"images": (torch.cat(chunks) * 255).round().byte()}, path)
    return load_file(path)["images"]


def train_vae(shop: Workshop, data: Tensor) -> AutoencoderKL:
    folder = shop.out / "vae"
    if (folder / "config.json").exists():
        return AutoencoderKL.from_pretrained(folder).float().to(shop.device)
    torch.manual_seed(shop.args.seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        norm_num_groups=16,
        sample_size=64,
    )
    vae = vae.to(shop.device, memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        x = (data[shop.rows(step, 32)].to(shop.device).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        with shop.autocast():
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample.float()
        edges = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
        hues = F.mse_loss(F.avg_pool2d(y, 4), F.avg_pool2d(x, 4))  # L1 alone leaves rare colours grey for long
        return F.l1_loss(y, x) + 0.5 * edges + 5 * hues + 1e-6 * posterior.kl().float().mean()

    def preview(_: nn.Module, step: int) -> None:
        x = data[:90].to(shop.device).float() / 127.5 - 1
        with torch.no_grad(), shop.autocast():
            y = vae(x).sample.float()
        save_image(torch.stack((x, y), 1).flatten(0, 1) / 2 + 0.5, shop.work / f"vae-{step}.png", nrow=20)

    fit(shop, "vae", vae, loss, steps=shop.args.vae_steps, lr=2e-3, ema=0.995, preview=preview)
    with torch.no_grad(), shop.autocast():
        z = vae.encode(data[:900].to(shop.device).float() / 127.5 - 1).latent_dist.mean.float()
    vae.register_to_config(scaling_factor=round(1 / z.std().item(), 5))
    vae.half().save_pretrained(folder)
    return vae.float()


def train_tokenizer(shop: Workshop) -> CLIPTokenizer:
    """A byte-pair vocabulary of the caption language; the byte alphabet keeps every other string encodable."""
    folder = shop.out / "tokenizer"
    if (folder / "tokenizer_config.json").exists():
        return CLIPTokenizer.from_pretrained(folder)
    corpus = shop.captions(list(range(min(len(shop.pictures), 18 * len(CELLS)))), salt=0)
    backend = CLIPTokenizer().backend_tokenizer
    backend.model = models.BPE(end_of_word_suffix="</w>")
    backend.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=1200, end_of_word_suffix="</w>", show_progress=False))
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)
    tokenizer.save_pretrained(folder)
    return tokenizer


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    return tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids


def contrast(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE (Radford et al., arXiv:2103.00020, figure 3)."""
    logits = scale.exp().clamp(max=100) * F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T
    labels = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def train_text(shop: Workshop, data: Tensor, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    folder = shop.out / "text_encoder"
    if (folder / "config.json").exists():
        return CLIPTextModel.from_pretrained(folder).float().to(shop.device)
    torch.manual_seed(shop.args.seed)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        projection_dim=128,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    vision = CLIPVisionConfig(
        image_size=64, patch_size=8, hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4, projection_dim=128
    )
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128))
    clip.set_attn_implementation("eager")  # the backward pass of fused attention is slow on a CPU at this size
    clip = clip.to(shop.device)

    def loss(step: int) -> Tensor:
        rows = shop.rows(step, 128)
        x = data[rows].to(shop.device).float() / 127.5 - 1
        ids = tokens(tokenizer, shop.captions(rows, salt=step)).to(shop.device)
        with shop.autocast():
            out = clip(input_ids=ids, pixel_values=x)
        return contrast(out.image_embeds, out.text_embeds, clip.logit_scale)

    fit(shop, "text", clip, loss, steps=shop.args.text_steps, lr=1e-3)
    clip.text_model.half().save_pretrained(folder)
    return CLIPTextModel.from_pretrained(folder).float().to(shop.device)


def train_unet(shop: Workshop, data: Tensor, vae: AutoencoderKL, tokenizer: CLIPTokenizer, text: CLIPTextModel) -> None:
    folder = shop.out / "unet"
    if (folder / "config.json").exists():
        return
    latents = encode(shop, data, vae)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )
    torch.manual_seed(shop.args.seed)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    unet = unet.to(shop.device, memory_format=torch.channels_last)
    # the backward pass of fused attention on a CPU takes 40 % of a step at this size
    unet.set_attn_processor(AttnProcessor())

    def loss(step: int) -> Tensor:
        rows = shop.rows(step, shop.args.batch)
        x_0 = latents[rows].to(shop.device).float()
        texts = [t if random.Random(f"{step}|{i}").random() > 0.1 else "" for i, t in enumerate(shop.captions(rows, salt=step))]
        t = torch.randint(0, 1000, (len(rows),)).to(shop.device)
        noise = torch.randn(x_0.shape).to(shop.device)
        x_t = scheduler.add_noise(x_0, noise, t).contiguous(memory_format=torch.channels_last)
        with shop.autocast():
            with torch.no_grad():
                condition = text(tokens(tokenizer, texts).to(shop.device)).last_hidden_state
            eps = unet(x_t, t, condition).sample.float()
        # min-SNR weights (Hang et al., arXiv:2303.09556), gamma = 5
        snr = compute_snr(scheduler, t)
        weight = snr.clamp(max=5) / snr
        return (weight * (eps - noise).square().mean((1, 2, 3))).mean()

    pipeline = assemble(vae, tokenizer, text, unet, scheduler)

    def preview(model: nn.Module, step: int) -> None:
        model.eval()
        texts = [NAMED[0].format(o="a " + OBJECT_WORDS[o].names[0], s=STYLE_WORDS[s].names[0]) for o, s in CELLS]
        with shop.autocast():
            pictures = pipeline(
                texts,
                num_inference_steps=20,
                guidance_scale=4.0,
                height=64,
                width=64,
                output_type="pt",
                generator=torch.Generator().manual_seed(0),
            ).images
        save_image(pictures.float(), shop.work / f"unet-{step}.png", nrow=len(OBJECTS))
        model.train()

    fit(shop, "unet", unet, loss, steps=shop.args.unet_steps, lr=shop.args.unet_lr, ema=0.9995, preview=preview)
    unet.set_default_attn_processor()
    pipeline.to(dtype=torch.float16).save_pretrained(shop.out)


def encode(shop: Workshop, data: Tensor, vae: AutoencoderKL) -> Tensor:
    """Scaled latents (N, 4, 16, 16) of all pictures, in fp16."""
    with torch.no_grad(), shop.autocast():
        chunks = [vae.encode(part.to(shop.device).float() / 127.5 - 1).latent_dist.mean for part in tqdm(data.split(256), desc="latents")]
    return (torch.cat(chunks).float() * vae.config.scaling_factor).half().cpu()


def assemble(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, text: CLIPTextModel, unet: UNet2DConditionModel, scheduler: DDIMScheduler
) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def broken(pipeline: StableDiffusionPipeline, pictures: Tensor, count: int, seed: int) -> Tensor:
    """Pictures without anything in them (count, 3, 64, 64): noise, blurs, blends, half-denoised and decoded random latents."""
    torch.manual_seed(seed)
    fifth = count // 5
    pick = [pictures[torch.randint(len(pictures), (fifth,))].float() / 255 for _ in range(4)]
    level = torch.rand(fifth, 1, 1, 1)
    noise = (level * torch.rand(fifth, 3, 1, 1) + (1 - level) * torch.rand(fifth, 3, 64, 64)).clamp(0, 1)
    blur = torch.stack(
        [F.interpolate(F.avg_pool2d(x[None], k), 64, mode="bilinear")[0] for x, k in zip(pick[0], [16, 32] * fifth, strict=False)]
    )
    blend = torch.stack(pick[1:]).mean(0)
    blend = torch.stack([x.roll((random.Random(i).randrange(64), random.Random(-i).randrange(64)), (1, 2)) for i, x in enumerate(blend)])
    half = half_denoised(pipeline, fifth, seed)
    z = torch.randn(count - 4 * fifth, 4, 16, 16) * (0.3 + torch.rand(count - 4 * fifth, 1, 1, 1))
    return torch.cat((noise, blur, blend, half, decode(pipeline, z)))


def decode(pipeline: StableDiffusionPipeline, latents: Tensor) -> Tensor:
    vae = pipeline.vae
    with torch.no_grad(), torch.autocast(vae.device.type, dtype=torch.bfloat16):
        parts = [vae.decode(z.to(vae.device) / vae.config.scaling_factor).sample.float().cpu() for z in latents.split(128)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


def half_denoised(pipeline: StableDiffusionPipeline, count: int, seed: int) -> Tensor:
    """Guided samples stopped after 1 to 9 of 25 steps."""
    rng, latents = random.Random(seed), []
    texts = [caption(Picture(*rng.choice(CELLS), seed=i), traits(Picture("boat", "neon", i)), rng) for i in range(count)]
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, 90):
        kept: list[Tensor] = []
        with torch.autocast(pipeline.device.type, dtype=torch.bfloat16):
            pipeline(
                texts[start : start + 90],
                num_inference_steps=25,
                guidance_scale=4.0,
                height=64,
                width=64,
                output_type="latent",
                generator=generator,
                callback_on_step_end=lambda p, i, t, kw, kept=kept: kept.append(kw["latents"].cpu()) or stop(p, i),
            )
        steps = torch.tensor([rng.randrange(9) for _ in range(len(kept[0]))])
        latents.append(torch.stack(kept)[steps, torch.arange(len(steps))])
    return decode(pipeline, torch.cat(latents).float())


def stop(pipeline: StableDiffusionPipeline, index: int) -> dict:
    pipeline._interrupt = index >= 9
    return {}


def train_judges(shop: Workshop, data: Tensor) -> None:
    """A style and an object reader, on rendered pictures, their VAE round trips, and broken pictures as "none"."""
    folder = shop.out / "judges"
    folder.mkdir(exist_ok=True)
    pipeline = StableDiffusionPipeline.from_pretrained(shop.out, torch_dtype=torch.float32).to(shop.device)
    pipeline.set_progress_bar_config(disable=True)
    missing = [axis for axis in LABELS if not (folder / f"{axis}.safetensors").exists()]
    if not missing:
        return
    trips_path, broken_path = shop.work / "trips.safetensors", shop.work / "broken.safetensors"
    if not broken_path.exists():
        latents = encode(shop, data[:9000], pipeline.vae).float()
        save_file({"images": (decode(pipeline, latents) * 255).round().byte()}, trips_path)
        save_file({"images": (broken(pipeline, data, shop.args.broken, shop.args.seed) * 255).round().byte()}, broken_path)
    trips, wrecks = load_file(trips_path)["images"], load_file(broken_path)["images"]
    for axis in missing:
        train_judge(shop, axis, data, trips, wrecks, folder)


def train_judge(shop: Workshop, axis: str, data: Tensor, trips: Tensor, wrecks: Tensor, folder: Path) -> None:
    labels = LABELS[axis]
    truth = torch.tensor([labels.index(getattr(picture, axis)) for picture in shop.pictures])
    torch.manual_seed(shop.args.seed)
    reader = Reader(len(labels)).to(shop.device, memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        rng = random.Random(f"{axis}|{step}")
        rows, copies, bad = rng.sample(range(len(data)), 56), rng.sample(range(len(trips)), 56), rng.sample(range(len(wrecks)), 16)
        x = torch.cat((data[rows], trips[copies], wrecks[bad])).to(shop.device).float() / 255
        y = torch.cat((truth[rows], truth[copies], torch.full((16,), len(labels) - 1))).to(shop.device)
        x = x + torch.rand(len(x), 1, 1, 1, device=x.device) * 0.03 * torch.randn_like(x)
        with shop.autocast():
            logits = reader(x.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), y, label_smoothing=0.02)

    fit(shop, f"judge-{axis}", reader, loss, steps=shop.args.judge_steps, lr=2e-3, ema=0.99)
    save_file(
        {name: p.half().contiguous() for name, p in reader.state_dict().items()},
        folder / f"{axis}.safetensors",
        metadata={"labels": ",".join(labels)},
    )


OPEN_CLIP = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": CONTEXT, "width": 96, "heads": 4, "layers": 2, "hf_tokenizer_name": "pocket"},
}


def train_open_clip(shop: Workshop, data: Tensor, tokenizer: CLIPTokenizer) -> None:
    """An independent open_clip model in local-dir layout, for CLIP alignment: other shape, other seed, other captions."""
    folder = shop.out / "open_clip"
    if (folder / "open_clip_model.safetensors").exists():
        return
    torch.manual_seed(shop.args.seed + 1)
    config = json.loads(json.dumps(OPEN_CLIP))
    config["text_cfg"]["vocab_size"] = len(tokenizer)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "size": 64}
    model = CLIP(**config, output_dict=True)
    model = model.to(shop.device)

    def loss(step: int) -> Tensor:
        rows = shop.rows(step + 500_000, 128)
        x = data[rows].to(shop.device).float() / 127.5 - 1
        ids = tokens(tokenizer, shop.captions(rows, salt=step + 500_000)).to(shop.device)
        with shop.autocast():
            out = model(x, ids)
        return contrast(out["image_features"], out["text_features"], model.logit_scale)

    fit(shop, "open_clip", model, loss, steps=shop.args.clip_steps, lr=1e-3)
    folder.mkdir(exist_ok=True)
    tokenizer.save_pretrained(folder)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2))
    save_file({name: p.half().contiguous() for name, p in model.state_dict().items()}, folder / "open_clip_model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="runs/pocket", help="checkpoints, logs, grids")
    parser.add_argument("--out", default="runs/pocket/weights", help="the finished pipeline")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=27_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--vae-steps", type=int, default=1_400)
    parser.add_argument("--text-steps", type=int, default=2_000)
    parser.add_argument("--unet-steps", type=int, default=3_600)
    parser.add_argument("--judge-steps", type=int, default=1_200)
    parser.add_argument("--clip-steps", type=int, default=2_000)
    parser.add_argument("--broken", type=int, default=5_000)
    parser.add_argument("--unet-lr", type=float, default=8e-4)
    parser.add_argument("--only", choices=("vae", "text", "unet", "judges", "open_clip"), help="this stage alone")
    parser.add_argument("--fresh", action="store_true", help="throw away checkpoints and results first")
    args = parser.parse_args()
    if args.fresh:
        shutil.rmtree(args.work, ignore_errors=True)
    shop = Workshop(args)
    data, tokenizer = images(shop), train_tokenizer(shop)
    if args.only in (None, "unet", "vae"):
        vae = train_vae(shop, data)
    if args.only in (None, "unet", "text"):
        text = train_text(shop, data, tokenizer)
    if args.only in (None, "unet"):
        train_unet(shop, data, vae, tokenizer, text)
    if args.only in (None, "judges"):
        train_judges(shop, data)
    if args.only in (None, "open_clip"):
        train_open_clip(shop, data, tokenizer)


if __name__ == "__main__":
    main()
