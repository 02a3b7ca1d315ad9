"""Measure the speed of pocket on a CPU and write docs/results/performance.md: sampling, and what its time goes into.

    python scripts/bench_cpu.py                  # every part: about three minutes of an idle core
    python scripts/bench_cpu.py --part sampling

What is compared runs in pairs, one after the other in this run; ratios are of medians of five rounds after a first one that does not count.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from fill_docs import fill_section
from torch.profiler import ProfilerActivity, profile

from erasure.families.base import DiffusionModel
from erasure.loading.loader import POCKET_FOLDER, load_model

ROUNDS = 5
IMAGES, STEPS, GUIDANCE = 16, 25, 4.0
PROMPTS = [f"a boat, {style} style" for style in ("neon", "sketch", "watercolor", "plain")] * (IMAGES // 4)
# what multiplies matrices, by the names of PyTorch's operators
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn", "convolution", "attention", "aten::linear")


def page(docs: Path) -> Path:
    return docs / "results" / "performance.md"


def run_in_turn(ways: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Run every way once a round, and return their seconds without the first round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return {name: values[1:] for name, values in seconds.items()}


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def report_sampling(docs: Path) -> None:
    """Images of the same prompts, steps and guidance: our sampler and diffusers' pipeline, on one core."""
    torch.set_num_threads(1)
    model = load_model("pocket")
    pipes = {dtype: load_pipeline(dtype) for dtype in (torch.float32, torch.bfloat16)}

    def ours() -> None:
        model.decode(model.sample(PROMPTS, list(range(IMAGES)), STEPS, GUIDANCE))

    def diffusers(dtype: torch.dtype) -> None:
        pipes[dtype](PROMPTS, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="pt")

    ways: dict[str, Callable[[], object]] = {
        "diffusers' pipeline, fp32": lambda: diffusers(torch.float32),
        "diffusers' pipeline, bf16": lambda: diffusers(torch.bfloat16),
        f"`model.sample` and `decode`, {str(model.compute_dtype).removeprefix('torch.')}": ours,
    }
    seconds = run_in_turn(ways)
    base = statistics.median(seconds["diffusers' pipeline, fp32"])
    rows = [f"| {name} | {spread(values)} | {base / statistics.median(values):.2f} |" for name, values in seconds.items()]
    head = [f"| {IMAGES} images, {STEPS} steps, guidance {GUIDANCE:g} | seconds, median of 5 (range) | times as fast |", "|---|---|---|"]
    fill_section(page(docs), "sampling", [*head, *rows])


def load_pipeline(dtype: torch.dtype) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(POCKET_FOLDER, dtype=dtype, safety_checker=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def report_kernels(docs: Path) -> None:
    """What share of the time goes into matrix products, and into what else, by PyTorch's profiler."""
    torch.set_num_threads(1)
    model = load_model("pocket")
    works = {"an ESD step of 8 rows": training_step(model), f"sampling {IMAGES} images, 5 steps": lambda: sample(model)}
    rows = []
    for name, work in works.items():
        model.set_attention(training=name.startswith("an ESD"))
        work()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(3):
                work()
        times = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
        total = sum(times.values())
        products = sum(value for key, value in times.items() if any(word in key for word in PRODUCTS))
        others = sorted(((v, k) for k, v in times.items() if not any(word in k for word in PRODUCTS)), reverse=True)[:5]
        rest = ", ".join(f"`{key}` {100 * value / total:.0f} %" for value, key in others)
        rows.append(f"| {name} | {100 * products / total:.0f} % | {rest} |")
    fill_section(page(docs), "kernels", ["| work | products and attention | most of the rest |", "|---|---|---|", *rows])


def training_step(model: DiffusionModel) -> Callable[[], None]:
    """A forward and backward pass of ESD's region."""
    x, t, cond = torch.randn(8, *model.latent_shape), torch.randint(0, 1000, (8,)), model.encode(["neon"] * 8)
    for name in model.parameter_names("xattn"):
        model.parameters()[name].requires_grad_(True)

    def step() -> None:
        F.mse_loss(model.predict(x, t, cond), x).backward()

    return step


@torch.no_grad()
def sample(model: DiffusionModel) -> None:
    model.sample(PROMPTS, list(range(IMAGES)), 5, GUIDANCE)


PARTS = {"sampling": report_sampling, "kernels": report_kernels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--part", choices=tuple(PARTS), action="append", help="run this part only; may be repeated")
    args = parser.parse_args()
    for part in args.part or PARTS:
        PARTS[part](args.docs)
        print(part, "is done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
