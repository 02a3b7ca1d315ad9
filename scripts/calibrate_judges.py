"""Measure the error rates of pocket's judges and write eval/judges/calibration/pocket_style.json and pocket_object.json.

    python scripts/calibrate_judges.py

Renders every cell from fresh seeds, passes it through pocket's VAE and 8 bits as for a generated image, and adds broken images as "none".
The seeds were neither trained on nor measured elsewhere. Generated images are less clean than these, and their true labels are unknown:
the figures are the judges' best case.
"""

import argparse
from dataclasses import asdict

import torch
from measure_pocket import all_cells, make_broken_images
from tqdm import tqdm

from erasure.loading.loader import load_model
from erasure.pocket.canvas import ImageSpec
from erasure.pocket.classifier import LABELS
from erasure.pocket.styles import render
from erasure.storage.run import hash_record, write_json
from eval.judges.base import Judge
from eval.judges.pocket_object import PocketObject
from eval.judges.pocket_style import PocketStyle
from eval.scoring.calibration import CALIBRATION_FOLDER, LabelCounts
from eval.stats.intervals import wilson

FIRST_SEED = 30_000_000  # training uses smaller seeds, measure_pocket.py those from 10 million, the tests those from 20 million
JUDGES: dict[str, Judge] = {"style": PocketStyle(), "object": PocketObject()}


def render_images(seeds: int) -> tuple[torch.Tensor, dict[str, list[str]]]:
    """Return images [N, 3, 64, 64] in [0, 1], rounded to 8 bits, and per axis their true labels."""
    model, targets = load_model("pocket"), all_cells(seeds)
    round_trips = []
    for i in tqdm(range(0, len(targets), 90), desc="images"):
        rendered = render([ImageSpec(o, s, FIRST_SEED + k) for o, s, k in targets[i : i + 90]])
        with torch.no_grad(), model.autocast():
            latents = model.pipe.vae.encode(rendered * 2 - 1).latent_dist.mean.float()
        round_trips.append(model.decode(latents * model.pipe.vae.config.scaling_factor))
    broken_images = make_broken_images(model, torch.cat(round_trips))
    truth = {"style": [s for _, s, _ in targets], "object": [o for o, _, _ in targets]}
    images = (torch.cat((*round_trips, broken_images)) * 255).round() / 255
    return images, {axis: [*labels, *["none"] * len(broken_images)] for axis, labels in truth.items()}


def count_errors(truth: list[str], predicted: list[str], label: str) -> LabelCounts:
    positive = [r == label for t, r in zip(truth, predicted, strict=True) if t == label]
    negative = [r != label for t, r in zip(truth, predicted, strict=True) if t != label]
    return LabelCounts(true_positive=sum(positive), positive=len(positive), true_negative=sum(negative), negative=len(negative))


def format_rate(k: int, n: int) -> str:
    interval = wilson(k, n)
    return f"{k}/{n} = {interval.estimate:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=22, help="renders of each of the 90 cells")
    seeds = parser.parse_args().seeds
    images, truth = render_images(seeds)
    CALIBRATION_FOLDER.mkdir(exist_ok=True)
    for axis, judge in JUDGES.items():
        predicted = [score.label for part in images.split(90) for score in judge.score(part, [])]
        labels = {label: count_errors(truth[axis], predicted, label) for label in LABELS[axis]}
        description = f"{seeds} fresh renders of every cell through the VAE; none: {truth[axis].count('none')} broken images"
        record = {
            "judge": hash_record(judge.identity()),
            "images": description,
            "labels": {label: asdict(c) for label, c in labels.items()},
        }
        write_json(CALIBRATION_FOLDER / f"pocket_{axis}.json", record)
        for label, c in labels.items():
            sensitivity, specificity = format_rate(c.true_positive, c.positive), format_rate(c.true_negative, c.negative)
            print(f"{axis} {label}: sensitivity {sensitivity}, specificity {specificity}")


if __name__ == "__main__":
    main()
