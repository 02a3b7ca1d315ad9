"""Reproduce docs/results/pocket-flow.md: the shipped flow transformer, and methods on its development concepts.

    python scripts/reproduce_flow.py --work runs/flow

Recipes were tuned on these concepts (neon, boat), so their figures say nothing about others. Run folders under --work are resumed.
"""

import argparse
from pathlib import Path

import torch
from fill_docs import fill_section, fill_table_rows
from measure_pocket import all_cells, cell_lines, generate, judge_hits
from reproduce_methods import DEVELOPMENT, audit_at_strength, detail_row, erase_in_subprocess
from torchvision.utils import save_image

from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.pocket.canvas import OBJECTS, STYLES

SOURCE = "pocket-flow"
METHODS = ("esd", "uce")


def report_model(model: DiffusionModel, work: Path, docs: Path) -> None:
    targets = all_cells(5)
    images = generate(model, targets)
    parameters = sum(p.numel() for p in model.denoiser.parameters())
    lines = [f"The transformer has {parameters:,} parameters.", "", *cell_lines(judge_hits(images, targets), targets, 5)]
    lines = [line.replace("DDIM steps", "Euler steps") for line in lines]
    fill_section(docs / "results" / "pocket-flow.md", "model", lines)
    grid = images[: len(STYLES) * len(OBJECTS)].repeat_interleave(2, -1).repeat_interleave(2, -2)
    save_image(grid, docs / "images" / "pocket-flow.png", nrow=len(OBJECTS))


def report_development(model: DiffusionModel, work: Path, docs: Path) -> None:
    """Audit every method on the concepts that its recipe was tuned on, in tier standard."""
    head = ["| method | concept | UA | IRA | CRA | CLIP, retained (base) | distance, retained |", "|---|---|---|---|---|---|---|"]
    for method in METHODS:
        folders = {name: erase_in_subprocess(method, name, kind, work / "methods", SOURCE) for name, kind in DEVELOPMENT.items()}
        rows = [detail_row(method, name, audit_at_strength(model, folder, "pocket", "standard")) for name, folder in folders.items()]
        fill_table_rows(docs / "results" / "pocket-flow.md", "development", head, rows)


PARTS = {"model": report_model, "development": report_development}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/flow"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--part", choices=tuple(PARTS), action="append", help="run this part only; may be repeated")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(SOURCE)
    for part in args.part or PARTS:
        PARTS[part](model, args.work, args.docs)


if __name__ == "__main__":
    main()
