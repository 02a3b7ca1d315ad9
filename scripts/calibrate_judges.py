"""Measure how often pocket's judges err and write eval/judges/calibration/pocket_style.json and pocket_object.json.

    python scripts/calibrate_judges.py

Renders every cell from fresh seeds, takes it through pocket's VAE and to 8 bits as a drawn picture would be, and adds broken pictures as
"none". Seeds were neither trained on nor measured elsewhere. Drawn pictures are less clean than these, and their truth is unknown: the
figures are the judges' best case.
"""

import argparse
from dataclasses import asdict

import torch
from measure_pocket import broken, cells
from tqdm import tqdm

from erasure.loading.loader import load_model
from erasure.pocket.canvas import Picture, render
from erasure.pocket.reader import LABELS
from erasure.storage.run import digest, write_json
from eval.judges.base import Judge
from eval.judges.pocket_object import PocketObject
from eval.judges.pocket_style import PocketStyle
from eval.scoring.calibration import FOLDER, Counts
from eval.stats.intervals import wilson

FRESH = 30_000_000  # training has smaller seeds, measure_pocket.py those from 10 million, the tests those from 20 million
JUDGES: dict[str, Judge] = {"style": PocketStyle(), "object": PocketObject()}


def pictures(seeds: int) -> tuple[torch.Tensor, dict[str, list[str]]]:
    """Pictures (N, 3, 64, 64) in [0, 1] as PNG files hold them, and per axis what is in each."""
    model, wanted = load_model("pocket"), cells(seeds)
    trips = []
    for i in tqdm(range(0, len(wanted), 90), desc="pictures"):
        fresh = render([Picture(o, s, FRESH + k) for o, s, k in wanted[i : i + 90]])
        with torch.no_grad(), model.autocast():
            latents = model.pipe.vae.encode(fresh * 2 - 1).latent_dist.mean.float()
        trips.append(model.decode(latents * model.pipe.vae.config.scaling_factor))
    wrecks = broken(model, torch.cat(trips))
    truth = {"style": [s for _, s, _ in wanted], "object": [o for o, _, _ in wanted]}
    whole = (torch.cat((*trips, wrecks)) * 255).round() / 255
    return whole, {axis: [*labels, *["none"] * len(wrecks)] for axis, labels in truth.items()}


def counted(truth: list[str], read: list[str], label: str) -> Counts:
    positive = [r == label for t, r in zip(truth, read, strict=True) if t == label]
    negative = [r != label for t, r in zip(truth, read, strict=True) if t != label]
    return Counts(true_positive=sum(positive), positive=len(positive), true_negative=sum(negative), negative=len(negative))


def share(k: int, n: int) -> str:
    interval = wilson(k, n)
    return f"{k}/{n} = {interval.estimate:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=22, help="renders of each of the 90 cells")
    seeds = parser.parse_args().seeds
    shown, truth = pictures(seeds)
    FOLDER.mkdir(exist_ok=True)
    for axis, judge in JUDGES.items():
        read = [row["label"] for part in shown.split(90) for row in judge.read(part, [])]
        labels = {label: counted(truth[axis], read, label) for label in LABELS[axis]}
        said = f"{seeds} fresh renders of every cell through the VAE; none: {truth[axis].count('none')} broken pictures"
        record = {"judge": digest(judge.identity()), "pictures": said, "labels": {label: asdict(c) for label, c in labels.items()}}
        write_json(FOLDER / f"pocket_{axis}.json", record)
        for label, c in labels.items():
            print(f"{axis} {label}: sensitivity {share(c.true_positive, c.positive)}, specificity {share(c.true_negative, c.negative)}")


if __name__ == "__main__":
    main()
