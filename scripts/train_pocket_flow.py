"""Train pocket-flow, a rectified-flow transformer in the layout of Stable Diffusion 3, on PocketCanvas.

    python scripts/train_pocket_flow.py --work runs/pocket-flow --out erasure/pocket/flow_weights

The VAE, the tokenizer and the text encoder are pocket's and stay as they are. One resumable stage; logs and sample grids go to the work
folder. The recipe: velocity loss of rectified flow with logit-normal times (Esser et al., arXiv:2403.03206, sections 2 and 3.1), Muon for
the matrices of the blocks and AdamW for the rest.
"""

import argparse
import random
import shutil
from collections.abc import Callable

import torch
from measure_pocket import judge_hits
from pocket_flow import RepeatedTokenProcessor, new_transformer
from pocket_training import TrainingSetup, constant_then_decaying_lr, encode_latents, fit, render_training_images
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.utils import save_image

from erasure.families.stable_diffusion_3 import StableDiffusion3
from erasure.loading.loader import POCKET_FOLDER
from erasure.pocket.canvas import OBJECTS, STYLES
from erasure.pocket.captions import NAMED_TEMPLATES, OBJECT_WORDS, STYLE_WORDS
from erasure.pocket.flow import build_pipeline


def grid_prompts() -> list[str]:
    return [NAMED_TEMPLATES[0].format(o="a " + OBJECT_WORDS[o].names[0], s=STYLE_WORDS[s].names[0]) for s in STYLES for o in OBJECTS]


def optimizers_of(transformer: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the matrices of the blocks, AdamW for everything else."""
    matrices = [p for n, p in transformer.named_parameters() if p.ndim == 2 and n.startswith("transformer_blocks.")]
    rest = [p for n, p in transformer.named_parameters() if not (p.ndim == 2 and n.startswith("transformer_blocks."))]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.01, betas=(0.9, 0.99)),
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="runs/pocket-flow")
    parser.add_argument("--out", default="runs/pocket-flow/transformer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=27_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-width", type=int, default=32)
    parser.add_argument("--fresh", action="store_true")
    return parser.parse_args()


def make_loss(setup: TrainingSetup, latents: Tensor, model: StableDiffusion3, processor: RepeatedTokenProcessor) -> Callable[[int], Tensor]:
    """Return the loss of a step: |v(x_t, c) - (noise - x_0)|^2 at logit-normal times, with one caption in ten empty."""

    def loss(step: int) -> Tensor:
        rows = setup.rows(step, setup.args.batch)
        rng = random.Random(f"flow|{step}")
        captions = [text if rng.random() > 0.1 else "" for text in setup.captions(rows, salt=step)]
        x_0 = latents[rows].to(model.device).float()
        t = model.num_timesteps * torch.randn(len(rows)).sigmoid().to(model.device)
        noise = torch.randn(x_0.shape).to(model.device)
        processor.set_repeats(rng.choice((1, 1, 16, 64, 256)))
        with torch.no_grad():
            cond = model.encode(captions)
        return (model.predict(model.add_noise(x_0, noise, t), t, cond) - model.schedule.target(x_0, noise)).square().mean()

    return loss


def load_latents(setup: TrainingSetup, model: StableDiffusion3) -> Tensor:
    """Return the latents of all training images (N, 4, 16, 16), fp16, encoded once."""
    path = setup.work / f"latents-{setup.args.images}.safetensors"
    if not path.exists():
        save_file({"latents": encode_latents(setup, render_training_images(setup), model.pipe.vae)}, path)
    return load_file(path)["latents"]


def main() -> None:
    args = parse_arguments()
    if args.fresh:
        shutil.rmtree(args.work, ignore_errors=True)
    setup = TrainingSetup(args)
    torch.manual_seed(args.seed)
    pipeline = build_pipeline(POCKET_FOLDER, new_transformer(args.layers, args.heads, args.head_width)).to(setup.device)
    model = StableDiffusion3(pipeline, "pocket-flow")
    transformer, processor = model.denoiser.requires_grad_(True).train(), RepeatedTokenProcessor()
    pipeline.transformer.set_attn_processor(processor)
    print(f"{sum(p.numel() for p in transformer.parameters()):,} parameters", flush=True)

    def preview(_: nn.Module, step: int) -> None:
        transformer.eval()
        processor.set_repeats(1)
        prompts = grid_prompts()
        images = model.decode(model.sample(prompts, range(len(prompts)), 20)).cpu()
        save_image(images, setup.work / f"flow-{step}.png", nrow=len(OBJECTS))
        report_judges(images, step)
        transformer.train()

    fit(
        setup,
        "flow",
        transformer,
        make_loss(setup, load_latents(setup, model), model, processor),
        steps=args.steps,
        lr=args.lr,
        ema=0.9995,
        preview=preview,
        optimizers=optimizers_of(transformer, args.lr),
        schedule=constant_then_decaying_lr,
    )
    pipeline.transformer.half().save_pretrained(args.out)


def report_judges(images: Tensor, step: int) -> None:
    targets = [(o, s, 0) for s in STYLES for o in OBJECTS]
    hits = judge_hits(images, targets)
    print(step, {axis: sum(values) / len(values) for axis, values in hits.items()}, flush=True)


if __name__ == "__main__":
    main()
