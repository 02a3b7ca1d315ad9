"""Time one ESD training step and one forward pass of pocket, with glibc's allocation defaults and with the values that the commands set.

    python scripts/bench_step.py

Each setting runs in its own process, one after the other. Writes the figures into docs/results/performance.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from fill_docs import fill_section

from erasure.loading.loader import load_model

SETTINGS = {
    "defaults": {},
    "as the commands set it": {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "17179869184",
        "MALLOC_TOP_PAD_": "268435456",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    },
}


def measure(rows: int, repeats: int) -> dict[str, float]:
    """Return median seconds of a training step and of a forward pass over `rows` rows."""
    model = load_model("pocket")
    x, t, cond = torch.randn(rows, *model.latent_shape), torch.randint(0, 1000, (rows,)), model.encode(["neon"] * rows)
    for name in model.parameter_names("xattn"):
        model.parameters()[name].requires_grad_(True)

    def train() -> None:
        F.mse_loss(model.predict(x, t, cond), x).backward()

    @torch.no_grad()
    def forward() -> None:
        model.predict(x, t, cond)

    medians = {}
    for name, step, training in (("train", train, True), ("forward", forward, False)):
        model.set_attention(training=training)
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        medians[name] = statistics.median(seconds[1:])
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--here", action="store_true", help="measure in this process and print JSON")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.rows, args.repeats)))
        return
    lines = [f"| allocation | ESD step of {args.rows} rows, seconds | forward of {args.rows} rows, seconds |", "|---|---|---|"]
    for name, allocator in SETTINGS.items():
        environment = {k: v for k, v in os.environ.items() if k not in SETTINGS["as the commands set it"]}
        argv = [sys.executable, __file__, "--here", "--rows", str(args.rows), "--repeats", str(args.repeats)]
        medians = json.loads(subprocess.run(argv, env={**environment, **allocator}, check=True, capture_output=True, text=True).stdout)
        lines.append(f"| {name} | {medians['train']:.2f} | {medians['forward']:.2f} |")
    lines += ["", f"Median of {args.repeats} after one warm-up, {torch.get_num_threads()} threads."]
    fill_section(Path("docs/results/performance.md"), "figures", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
