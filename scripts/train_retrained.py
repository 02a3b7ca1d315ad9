"""Train UNets without one concept: pocket's recipe without an image or a caption of it.

    python scripts/train_retrained.py --without glass --seed 1 --work runs/retrained

VAE, tokenizer and text encoder are pocket's and frozen; all else (initial weights, images, their order, noise) follows the seed, which
must not be pocket's 0. One resumable command per retrained model, on a CPU or a GPU. The log and sample grids go to the work folder; its
cells.json lists the cells in the training set and the excluded cells.
"""

import argparse
import json
from pathlib import Path

import torch
from measure_pocket import FIRST_FRESH_SEED
from pocket_training import CELLS, TrainingSetup, render_training_images
from safetensors.torch import save_file
from train_pocket import fit_unet

from erasure.loading.loader import load_model
from erasure.pocket.canvas import OBJECTS, STYLES

RETRAINED_WEIGHTS = Path(__file__).parent.parent / "eval" / "retrained" / "weights"


def cells_of(setup: TrainingSetup) -> dict[str, list[str]]:
    """Return the cells with and without training images."""
    trained_cells = {(spec.object, spec.style) for spec in setup.canvas_images}
    names = {cell: f"{cell[0]} in {cell[1]}" for cell in CELLS}
    return {
        "trained": [names[cell] for cell in CELLS if cell in trained_cells],
        "excluded": [names[cell] for cell in CELLS if cell not in trained_cells],
    }


def train_retrained(setup: TrainingSetup, target: Path, without: str) -> None:
    """Train one UNet and write it in fp16; the settings go into the file's header."""
    cells = cells_of(setup)
    (setup.work / "cells.json").write_text(json.dumps(cells, indent=1) + "\n")
    print(f"excluded cells: {', '.join(cells['excluded'])}")
    pocket = load_model("pocket", device=str(setup.device), dtype="fp32").pipe
    pocket.vae.requires_grad_(False)
    pocket.text_encoder.requires_grad_(False)
    unet = fit_unet(setup, render_training_images(setup), pocket.vae, pocket.tokenizer, pocket.text_encoder)
    metadata = {
        "without": without,
        "seed": setup.args.seed,
        "steps": setup.args.unet_steps,
        "batch": setup.args.batch,
        "images": len(setup.canvas_images),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().cpu().contiguous() for name, value in unet.state_dict().items()}
    save_file(weights, target, {name: str(value) for name, value in metadata.items()})
    print(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--without", required=True, choices=sorted({*OBJECTS, *STYLES} - {"plain"}), help="concept that the training set excludes"
    )
    parser.add_argument("--seed", type=int, default=1, help="1 to 9; 0 is pocket's own")
    parser.add_argument("--work", type=Path, default=Path("runs/retrained"), help="checkpoints, logs, grids; one folder per model")
    parser.add_argument("--out", type=Path, default=RETRAINED_WEIGHTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=27_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--unet-steps", type=int, default=3_400)
    parser.add_argument("--unet-lr", type=float, default=8e-4)
    args = parser.parse_args()
    if not 1 <= args.seed < FIRST_FRESH_SEED // 1_000_000:  # each seed has a million image seeds per cell
        parser.error(
            f"--seed must be 1 to {FIRST_FRESH_SEED // 1_000_000 - 1}, got {args.seed}: "
            "0 is pocket's own, and judges are measured on later ones."
        )
    name = f"without-{args.without}-{args.seed}"
    args.work, target = args.work / name, args.out / f"{name}.safetensors"
    if target.exists():
        print(f"{target} exists already.")
        return
    train_retrained(TrainingSetup(args, args.without), target, args.without)


if __name__ == "__main__":
    main()
