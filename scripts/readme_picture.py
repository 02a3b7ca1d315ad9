"""Draw docs/images/before-after.png from the audit of `make demo`.

    erasure demo && python scripts/readme_picture.py runs/demo/audit-pocket-smoke

Upper rows: the erased style, before and after from the same noise. Lower rows: pictures that should stay, before and after. Columns are the
objects of the suite in order, not chosen by look.
"""

import argparse
import json
from pathlib import Path

import torch
from torchvision.utils import save_image

from eval.generation import load_png
from eval.scoring.recount import finished


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audit", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images/before-after.png"))
    args = parser.parse_args()
    result = finished(args.audit)
    rows = [json.loads(line) for line in (args.audit / "samples.jsonl").read_text().splitlines()]
    first = {(r["model"], r["style"], r["object"]): r["image"] for r in rows if r["index"] == 0}
    objects = list(dict.fromkeys(r["object"] for r in rows))
    others = [s for s in dict.fromkeys(r["style"] for r in rows) if s not in result["targets"] and s != "plain"]
    strips = []
    for style_of in (lambda i: result["targets"][0], lambda i: others[i % len(others)]):
        for model in ("base", "erased"):
            strips.append(torch.stack([load_png(args.audit / first[model, style_of(i), o]) for i, o in enumerate(objects)]))
    picture = torch.cat(strips).repeat_interleave(2, -1).repeat_interleave(2, -2)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_image(picture, args.out, nrow=len(objects), pad_value=1)
    print(args.out)


if __name__ == "__main__":
    main()
