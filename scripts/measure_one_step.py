"""Distil pocket's one-step generator (the start of SFD) and measure what it draws before it forgets anything: docs/sfd.md.

    python scripts/measure_one_step.py

The distillation is kept in the cache and shared by all SFD erasures; an interrupted one continues.
"""

import argparse
from pathlib import Path

from figures import fill
from measure_pocket import cells, draw, right, share
from torchvision.utils import save_image

from erasure.concept import parse
from erasure.edits import Edit, EditInfo
from erasure.erasing import applied, beginning, configure
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.methods.sfd import SFD
from erasure.training.loop import Loop
from erasure.training.one_step import FAKE_PREFIX


def generator(model: DiffusionModel) -> Edit:
    """The distilled generator as an edit that erases nothing."""
    method, _, _ = configure(SFD, parse("neon", kind="style"), model.family, {})
    tensors = beginning(model, method, Loop(folder=Path()))  # type: ignore[arg-type]  # the recipe's class is SFD
    info = EditInfo(
        method="distillation",
        product="one-step",
        fields={"start": method.start},  # type: ignore[attr-defined]
        concepts=[],
        base={"source": "pocket", "fingerprint": model.fingerprint(), "family": model.family, "after": []},
        seed=0,
        precision="",
        versions={},
        cost=method.before().forecast(model, []).record(),  # type: ignore[attr-defined]
        known=[],
        notes={},
    )
    return Edit({name: value.half() for name, value in tensors.items() if not name.startswith(FAKE_PREFIX)}, info)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    model, wanted = load_model("pocket"), cells(args.seeds)
    edit = generator(model)
    with applied(model, [edit]):
        pictures = draw(model, wanted)
    save_image(pictures[:90], args.docs / "images" / "one-step.png", nrow=10, padding=1)
    hits = right(pictures, wanted)
    both = [a and b for a, b in zip(hits["style"], hits["object"], strict=True)]
    size = sum(t.numel() * t.element_size() for t in edit.tensors.values()) / 1e6
    cost = edit.info.cost
    lines = [
        "| one step, before forgetting | read as asked |",
        "|---|---|",
        f"| style | {share(hits['style'])} |",
        f"| object | {share(hits['object'])} |",
        f"| both | {share(both)} |",
        "",
        f"Adapter {size:.2f} MB in fp16; distilled with {cost['unet_forwards']:,} forwards, {cost['unet_backwards']:,} backwards.",
    ]
    fill(args.docs / "sfd.md", "distillation", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
