"""Make docs/images/before-after.png from the audit of `make demo`.

    erasure demo && python scripts/readme_image.py runs/demo/audit-pocket-smoke

Upper rows: the erased style, before and after from the same noise. Lower rows: images to retain, before and after. Columns are the objects
of the suite in order, not hand-picked.
"""

import argparse
from pathlib import Path

import torch
from torchvision.utils import save_image

from eval.generation import load_png
from eval.records.models import BASE, ERASED
from eval.records.result_files import read_result
from eval.scoring.recount import load_sample_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audit", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images/before-after.png"))
    args = parser.parse_args()
    result = read_result(args.audit)
    rows = load_sample_rows(args.audit)
    image_paths = {(r.model, r.style, r.object): r.image for r in rows if r.index == 0}
    objects = list(dict.fromkeys(r.object for r in rows))
    other_styles = [s for s in dict.fromkeys(r.style for r in rows) if s not in result.targets and s != "plain"]
    image_rows = []
    for style_of in (lambda i: result.targets[0], lambda i: other_styles[i % len(other_styles)]):
        for model in (BASE, ERASED):
            image_rows.append(torch.stack([load_png(args.audit / image_paths[model, style_of(i), o]) for i, o in enumerate(objects)]))
    sheet = torch.cat(image_rows).repeat_interleave(2, -1).repeat_interleave(2, -2)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_image(sheet, args.out, nrow=len(objects), pad_value=1)
    print(args.out)


if __name__ == "__main__":
    main()
