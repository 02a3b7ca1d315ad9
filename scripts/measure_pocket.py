"""Measure the shipped pocket model and write the figures and images of docs/explanation/pocket-model.md.

    python scripts/measure_pocket.py

Generates every cell from 5 fresh seeds (25 DDIM steps, guidance 4) and scores the images with the judges. Measures the judges on unseen
renders, their VAE round trips and broken images. Writes the figures into docs/explanation/pocket-model.md, and docs/images/pocket.png.
"""

import argparse
import json
from pathlib import Path

import torch
from fill_docs import fill_section
from safetensors import safe_open
from torchvision.utils import save_image
from tqdm import tqdm

from erasure.families.base import DiffusionModel
from erasure.loading.loader import POCKET_FOLDER, load_model
from erasure.pocket.canvas import OBJECTS, STYLES, ImageSpec
from erasure.pocket.styles import render
from eval.judges import pocket_object, pocket_style
from eval.stats.intervals import wilson
from eval.suites.cases import Case
from eval.suites.suite import load_suite

FIRST_FRESH_SEED = 10_000_000  # seeds from here on were never rendered for training
JUDGES = {"style": pocket_style.PocketStyle(), "object": pocket_object.PocketObject()}


def all_cells(seeds: int) -> list[tuple[str, str, int]]:
    return [(o, s, i) for i in range(seeds) for s in STYLES for o in OBJECTS]


def judge_hits(images: torch.Tensor, targets: list[tuple[str, str, int]]) -> dict[str, list[bool]]:
    """Return, per axis, whether the judge's label of each image [N, 3, 64, 64] is the prompted one."""
    return {
        axis: [score.label == cell[0 if axis == "object" else 1] for score, cell in zip(judge.score(images, []), targets, strict=True)]
        for axis, judge in JUDGES.items()
    }


def format_hits(hits: list[bool]) -> str:
    interval = wilson(sum(hits), len(hits))
    return f"{sum(hits)}/{len(hits)} = {100 * interval.estimate:.1f}% ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def prompts_and_seeds(targets: list[tuple[str, str, int]]) -> list[tuple[str, int]]:
    """Return a prompt and a seed for every cell and number."""
    suite = load_suite("pocket")
    return [
        (suite.template.format(style=suite.styles[s], object=suite.objects[o]), Case(s, o, "", 1).seed("measure-pocket", k))
        for o, s, k in targets
    ]


def generate(model: DiffusionModel, targets: list[tuple[str, str, int]]) -> torch.Tensor:
    """Generate one image per target: [N, 3, 64, 64] in [0, 1]."""
    requests, parts = prompts_and_seeds(targets), []
    for i in tqdm(range(0, len(requests), 45), desc="generating"):
        prompts, seeds = zip(*requests[i : i + 45], strict=True)
        parts.append(model.decode(model.sample(prompts, seeds, 25, 4.0)))
    return torch.cat(parts)


def measure_judges(model: DiffusionModel) -> list[str]:
    targets = all_cells(6)
    rendered = render([ImageSpec(o, s, FIRST_FRESH_SEED + k) for o, s, k in targets])
    with torch.no_grad(), model.autocast():
        latents = torch.cat([model.pipe.vae.encode(x * 2 - 1).latent_dist.mean.float() for x in rendered.split(90)])
    round_trips = torch.cat([model.decode(z * model.pipe.vae.config.scaling_factor) for z in latents.split(90)])
    lines = []
    for name, images in (("unseen renders", rendered), ("after the VAE round trip", round_trips)):
        hits = judge_hits(images, targets)
        lines.append(f"| {name} | {format_hits(hits['style'])} | {format_hits(hits['object'])} |")
    broken_images = make_broken_images(model, rendered)
    none_hits = {axis: [score.label == "none" for score in judge.score(broken_images, [])] for axis, judge in JUDGES.items()}
    return [*lines, f"| broken images labeled none | {format_hits(none_hits['style'])} | {format_hits(none_hits['object'])} |"]


def make_broken_images(model: DiffusionModel, rendered: torch.Tensor) -> torch.Tensor:
    """Return noise, blurs, blends, half-denoised samples and decoded random latents, 60 of each, from seeds not used in training."""
    generator = torch.Generator().manual_seed(FIRST_FRESH_SEED)
    noise = torch.rand(60, 3, 64, 64, generator=generator)
    blur = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(rendered[:60], 16), 64, mode="bilinear")
    picked = torch.randperm(len(rendered), generator=generator)[:180]
    blend = rendered[picked].reshape(3, 60, 3, 64, 64).roll((0, 17), (0, 3)).mean(0)
    latents = model.decode(torch.randn(60, 4, 16, 16, generator=generator))
    suite = load_suite("pocket")
    prompts = [suite.template.format(style=suite.styles[s], object=suite.objects[o]) for o, s, _ in all_cells(1)[:60]]
    trajectory = model.trajectory(
        model.sample_noise(range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + 60)),
        model.encode(prompts),
        model.encode([""]).expand(60),
        25,
        4.0,
    )
    steps = [step.x_next for step, _ in zip(trajectory, range(8), strict=False)]
    half_denoised = model.decode(torch.stack([steps[i % 8][i] for i in range(60)]))
    return torch.cat((noise, blur, blend, half_denoised, latents))


def file_size_rows() -> list[str]:
    lines = []
    for path in sorted(POCKET_FOLDER.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            count = sum(torch.Size(file.get_slice(k).get_shape()).numel() for k in file.keys())  # noqa: SIM118 (safe_open is not a dict)
        lines.append(f"| {path.relative_to(POCKET_FOLDER)} | {count / 1e6:.2f} M | {path.stat().st_size / 1e6:.2f} MB |")
    total = sum(p.stat().st_size for p in POCKET_FOLDER.rglob("*") if p.is_file())
    return [*lines, f"| all files together | | {total / 1e6:.2f} MB |"]


def cell_lines(hits: dict[str, list[bool]], targets: list[tuple[str, str, int]], seeds: int) -> list[str]:
    """Return the table over all cells and the list of the weakest."""
    cells = [(o, s) for o, s, _ in all_cells(1)]
    both = {cell: [a and b for a, b, w in zip(hits["style"], hits["object"], targets, strict=True) if w[:2] == cell] for cell in cells}
    hits_by_cell = {
        axis: {cell: sum(h for h, w in zip(hits[axis], targets, strict=True) if w[:2] == cell) for cell in cells} for axis in hits
    }
    worst = [cell for cell in sorted(both, key=lambda cell: sum(both[cell]))[:10] if sum(both[cell]) < seeds]
    worst_text = ", ".join(
        f"{o} in {s} ({sum(both[o, s])}, {hits_by_cell['style'][o, s]}, {hits_by_cell['object'][o, s]})" for o, s in worst
    )
    return [
        f"All {len(both)} cells, {seeds} fresh seeds each, 25 DDIM steps, guidance 4:",
        "",
        "| label as prompted | rate (95% Wilson) | lowest cell |",
        "|---|---|---|",
        *(f"| {axis} | {format_hits(hits[axis])} | {min(hits_by_cell[axis].values())} of {seeds} |" for axis in hits),
        "",
        f"Weakest cells (both right, style right, object right, of {seeds}): {worst_text or 'none; all are right'}.",
        "",
    ]


def label_tables(hits: dict[str, list[bool]], targets: list[tuple[str, str, int]]) -> list[str]:
    """Return the rates by object and by style."""
    hits_of_object = {o: [h for h, w in zip(hits["object"], targets, strict=True) if w[0] == o] for o in OBJECTS}
    hits_of_style = {
        axis: {s: [h for h, w in zip(hits[axis], targets, strict=True) if w[1] == s] for s in STYLES} for axis in ("style", "object")
    }
    return [
        "| by object | object as prompted |",
        "|---|---|",
        *(f"| {o} | {format_hits(hits_of_object[o])} |" for o in OBJECTS),
        "",
        "| by style | style as prompted | object as prompted |",
        "|---|---|---|",
        *(f"| {s} | {format_hits(hits_of_style['style'][s])} | {format_hits(hits_of_style['object'][s])} |" for s in STYLES),
        "",
    ]


def judge_tables(judge_rows: list[str]) -> list[str]:
    """Return the tables of judges and of files."""
    return [
        "| judges | style | object |",
        "|---|---|---|",
        *judge_rows,
        "",
        "| file | parameters | size |",
        "|---|---|---|",
        *file_size_rows(),
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    model, targets = load_model("pocket"), all_cells(args.seeds)
    judge_rows = measure_judges(model)
    images = generate(model, targets)
    hits = judge_hits(images, targets)
    lines = [*cell_lines(hits, targets, args.seeds), *label_tables(hits, targets), *judge_tables(judge_rows)]
    (args.docs / "images").mkdir(exist_ok=True)
    fill_section(args.docs / "explanation" / "pocket-model.md", "figures", lines)
    grid = images[: len(STYLES) * len(OBJECTS)].repeat_interleave(2, -1).repeat_interleave(2, -2)
    save_image(grid, args.docs / "images" / "pocket.png", nrow=len(OBJECTS))
    print(json.dumps({axis: sum(h) / len(h) for axis, h in hits.items()}))


if __name__ == "__main__":
    main()
