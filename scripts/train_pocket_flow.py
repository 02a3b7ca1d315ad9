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
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from measure_pocket import judge_hits
from pocket_flow import JOINT_WIDTH, POOLED_WIDTH, RepeatedTokenProcessor, encode_captions, new_transformer, sample_latents
from pocket_training import TrainingSetup, constant_then_decaying_lr, encode_latents, fit, render_training_images, tokenize
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.utils import save_image
from transformers import CLIPTextModel, CLIPTokenizer

from erasure.pocket.canvas import OBJECTS, STYLES
from erasure.pocket.captions import NAMED_TEMPLATES, OBJECT_WORDS, STYLE_WORDS

WEIGHTS = Path("erasure/pocket/weights")


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


def make_loss(
    setup: TrainingSetup,
    latents: Tensor,
    transformer: nn.Module,
    processor: RepeatedTokenProcessor,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
) -> Callable[[int], Tensor]:
    """Return the loss of a step: |v(x_t, c) - (noise - x_0)|^2 at logit-normal times, with one caption in ten empty."""

    def loss(step: int) -> Tensor:
        rows = setup.rows(step, setup.args.batch)
        rng = random.Random(f"flow|{step}")
        captions = [text if rng.random() > 0.1 else "" for text in setup.captions(rows, salt=step)]
        x_0 = latents[rows].to(setup.device).float()
        sigma = torch.randn(len(rows)).sigmoid().to(setup.device)
        noise = torch.randn(x_0.shape).to(setup.device)
        s = sigma.reshape(-1, 1, 1, 1)
        x_t = (1 - s) * x_0 + s * noise
        processor.set_repeats(rng.choice((1, 1, 16, 64, 256)))
        with setup.autocast():
            with torch.no_grad():
                ids = tokenize(tokenizer, captions).to(setup.device)
                sequence, pooled = encode_captions(text_encoder, ids)
                target = noise - x_0
            velocity = transformer(x_t, encoder_hidden_states=sequence, pooled_projections=pooled, timestep=1000 * sigma).sample.float()
        return (velocity - target).square().mean()

    return loss


def main() -> None:
    args = parse_arguments()
    if args.fresh:
        shutil.rmtree(args.work, ignore_errors=True)
    setup = TrainingSetup(args)
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(WEIGHTS / "text_encoder").float().to(setup.device).eval()
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "vae").float().to(setup.device).eval()
    latents_path = setup.work / f"latents-{args.images}.safetensors"
    if not latents_path.exists():
        save_file({"latents": encode_latents(setup, render_training_images(setup), vae)}, latents_path)
    latents = load_file(latents_path)["latents"]
    torch.manual_seed(args.seed)
    transformer = new_transformer(args.layers, args.heads, args.head_width).to(setup.device)
    processor = RepeatedTokenProcessor()
    transformer.set_attn_processor(processor)
    print(f"{sum(p.numel() for p in transformer.parameters()):,} parameters, {JOINT_WIDTH=}, {POOLED_WIDTH=}", flush=True)

    loss = make_loss(setup, latents, transformer, processor, tokenizer, text_encoder)

    def preview(model: nn.Module, step: int) -> None:
        model.eval()
        processor.set_repeats(1)
        z = sample_latents(model, text_encoder, tokenizer, grid_prompts(), seed=0, steps=20)
        with torch.no_grad():
            images = (vae.decode(z / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
        save_image(images, setup.work / f"flow-{step}.png", nrow=len(OBJECTS))
        report_judges(images, step)
        model.train()

    fit(
        setup,
        "flow",
        transformer,
        loss,
        steps=args.steps,
        lr=args.lr,
        ema=0.9995,
        preview=preview,
        optimizers=optimizers_of(transformer, args.lr),
        schedule=constant_then_decaying_lr,
    )
    transformer.half().save_pretrained(args.out)


def report_judges(images: Tensor, step: int) -> None:
    targets = [(o, s, 0) for s in STYLES for o in OBJECTS]
    hits = judge_hits(images, targets)
    print(step, {axis: sum(values) / len(values) for axis, values in hits.items()}, flush=True)


if __name__ == "__main__":
    main()
