"""Distill pocket's one-step generator (the pretraining of SFD) and measure its images before any erasure: docs/results/sfd.md.

    python scripts/measure_one_step.py

The distillation is cached and shared by all SFD erasures; an interrupted one continues.
"""

import argparse
from pathlib import Path

from fill_docs import fill_section
from measure_pocket import all_cells, format_hits, generate, judge_hits
from torchvision.utils import save_image

from erasure.concept import parse_concepts
from erasure.edits import Edit, EditInfo, apply_edits
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.methods.sfd import SFD
from erasure.recipes import configure_method
from erasure.training.loop import TrainingOptions
from erasure.training.method_run import load_or_pretrain
from erasure.training.one_step import FAKE_PREFIX


def distill_generator(model: DiffusionModel) -> Edit:
    """Return the distilled generator as an edit that erases nothing."""
    method, _, _ = configure_method(SFD, parse_concepts("neon", kind="style"), model.family, {})
    tensors = load_or_pretrain(model, method, TrainingOptions(folder=Path()))  # type: ignore[arg-type]  # the recipe's class is SFD
    info = EditInfo(
        method="distillation",
        product="one-step",
        fields={"init_timestep": method.init_timestep},  # type: ignore[attr-defined]
        concepts=[],
        base={"source": "pocket", "fingerprint": model.fingerprint(), "family": model.family, "after": []},
        seed=0,
        precision="",
        versions={},
        cost=method.pretraining().forecast_cost(model, []).to_dict(),  # type: ignore[attr-defined]
        concept_checks=[],
        notes={},
    )
    return Edit({name: value.half() for name, value in tensors.items() if not name.startswith(FAKE_PREFIX)}, info)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    model, targets = load_model("pocket"), all_cells(args.seeds)
    edit = distill_generator(model)
    with apply_edits(model, [edit]):
        images = generate(model, targets)
    save_image(images[:90], args.docs / "images" / "one-step.png", nrow=10, padding=1)
    hits = judge_hits(images, targets)
    both = [a and b for a, b in zip(hits["style"], hits["object"], strict=True)]
    size = sum(t.numel() * t.element_size() for t in edit.tensors.values()) / 1e6
    cost = edit.info.cost
    lines = [
        "| one step, before erasure | label as prompted |",
        "|---|---|",
        f"| style | {format_hits(hits['style'])} |",
        f"| object | {format_hits(hits['object'])} |",
        f"| both | {format_hits(both)} |",
        "",
        f"Adapter {size:.2f} MB in fp16; distilled with {cost['unet_forwards']:,} forwards, {cost['unet_backwards']:,} backwards.",
    ]
    fill_section(args.docs / "results" / "sfd.md", "distillation", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
