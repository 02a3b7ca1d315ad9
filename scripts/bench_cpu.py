"""Measure the speed of pocket on a CPU and write docs/results/performance.md: sampling, what its time goes into, and what was tried.

    python scripts/bench_cpu.py                  # every part: about fifteen minutes of an idle core
    python scripts/bench_cpu.py --part sampling

What is compared runs in pairs, one after the other in this run; ratios are of medians of five rounds after a first one that does not count.
"""

import argparse
import os
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from fill_docs import fill_section
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from app.cli import PROCESS_ENVIRONMENT, restart_with_environment
from erasure.families.base import DiffusionModel
from erasure.loading.loader import POCKET_FOLDER, load_model

ROUNDS = 5
IMAGES, STEPS, GUIDANCE = 16, 25, 4.0
SMOKE_IMAGES = 300  # of both models in a smoke audit of a style of pocket
PROMPTS = [f"a boat, {style} style" for style in ("neon", "sketch", "watercolor", "plain")] * (IMAGES // 4)
# the samplers of "sampling": the precision of diffusers' pipeline, None for ours
SAMPLERS = {
    "diffusers' pipeline, fp32": torch.float32,
    "diffusers' pipeline, bf16": torch.bfloat16,
    "`model.sample` and `decode`, bf16": None,
}
K = TypeVar("K")
# what multiplies matrices, by the names of PyTorch's operators
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn", "convolution", "attention", "aten::linear")


def page(docs: Path) -> Path:
    return docs / "results" / "performance.md"


def run_in_turn(ways: Mapping[K, Callable[[], object]], rounds: int = ROUNDS, warm_up: bool = True) -> dict[K, list[float]]:
    """Run every way once a round, and return their seconds; a warm-up is one more round, which does not count.

    A way that returns a float has measured its seconds itself.
    """
    seconds: dict[K, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + warm_up):
        for name, way in ways.items():
            started = time.perf_counter()
            own = way()
            seconds[name].append(own if isinstance(own, float) else time.perf_counter() - started)
    return {name: values[warm_up:] for name, values in seconds.items()}


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def report_sampling(docs: Path) -> None:
    """Images of the same prompts, steps and guidance: our sampler and diffusers' pipeline, on one core, with two allocator settings."""
    defaults = {key: value for key, value in os.environ.items() if key not in PROCESS_ENVIRONMENT}
    servers = {"defaults": start_sampler(defaults), "as the commands set it": start_sampler({**defaults, **PROCESS_ENVIRONMENT})}

    def ask(setting: str, way: str) -> None:
        stdin, stdout = servers[setting].stdin, servers[setting].stdout
        assert stdin is not None and stdout is not None
        stdin.write(way + "\n")
        stdin.flush()
        if stdout.readline() != "done\n":
            raise SystemExit(f"the sampler of {way} ended")

    ways = {(way, setting): partial(ask, setting, way) for way in SAMPLERS for setting in servers}
    seconds = run_in_turn(ways)
    for server in servers.values():
        server.terminate()
    base = statistics.median(seconds["diffusers' pipeline, fp32", "defaults"])
    rows = [f"| {way} | {key} | {spread(v)} | {base / statistics.median(v):.2f} |" for (way, key), v in seconds.items()]
    head = [f"| {IMAGES} images, {STEPS} steps, guidance {GUIDANCE:g} | allocation | seconds, median of 5 (range) | times as fast |"]
    fill_section(page(docs), "sampling", [*head, "|---|---|---|---|", *rows])


def start_sampler(environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    """Start a process that samples what it is asked for."""
    argv = [sys.executable, __file__, "--part", "serve"]
    return subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve() -> None:
    """Sample with the way of every line of the input, on one core."""
    torch.set_num_threads(1)
    model = load_model("pocket")
    pipes = {dtype: load_pipeline(dtype) for dtype in (torch.float32, torch.bfloat16)}
    for line in sys.stdin:
        match SAMPLERS[line.strip()]:
            case None:
                model.decode(model.sample(PROMPTS, list(range(IMAGES)), STEPS, GUIDANCE))
            case dtype:
                pipes[dtype](PROMPTS, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="pt")
        print("done", flush=True)


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
        rest = ", ".join(f"`{key}` {100 * value / total:.0f}%" for value, key in others)
        rows.append(f"| {name} | {100 * products / total:.0f}% | {rest} |")
    flops, peak = count_flops(model), 2 * 1024**3 / min(product_seconds(model.compute_dtype))
    floor = SMOKE_IMAGES * 2 * STEPS * flops / peak / 2
    bound = (
        f"A forward pass of a row is {flops / 1e9:.2f} GFLOP, and a core multiplies matrices of {str(model.compute_dtype)[6:]} at "
        f"{peak / 1e9:.0f} GFLOP/s at best. So {SMOKE_IMAGES} images of {STEPS} steps with guidance, as in a smoke audit, take two cores "
        f"at least {floor:.0f} s."
    )
    lines = ["| work | products and attention | most of the rest |", "|---|---|---|", *rows, "", *textwrap.wrap(bound, 100)]
    fill_section(page(docs), "kernels", lines)


@torch.no_grad()
def count_flops(model: DiffusionModel) -> int:
    """Return the operations of a forward pass of one row."""
    with FlopCounterMode(display=False) as counter:
        model.predict(torch.randn(1, *model.latent_shape), torch.tensor([500]), model.encode(["neon"]))
    return int(counter.get_total_flops())


def product_seconds(dtype: torch.dtype) -> list[float]:
    """Return what products of two 1024 x 1024 matrices take."""
    a, b = (torch.randn(1024, 1024).to(dtype) for _ in range(2))
    return run_in_turn({"product": lambda: a @ b}, rounds=20)["product"]


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


def report_tried(docs: Path) -> None:
    """What could make a forward pass or a training step faster, and what it changes."""
    torch.set_num_threads(1)
    variants = {name: make() for name, make in VARIANTS.items()}
    rows, images, seconds = [], {}, {}
    for training in (False, True):
        for name, model in variants.items():
            choose_attention(name, model, training)
            if not training:
                images[name] = small_images(model)
        works = {name: training_step(model) if training else forward_pass(model) for name, model in variants.items()}
        seconds[training] = {name: statistics.median(values) for name, values in run_in_turn(works).items()}
    for name in variants:
        times = [f"{seconds[t][name]:.2f} ({seconds[t][NOW] / seconds[t][name]:.2f})" for t in (False, True)]
        change = (images[name] - images[NOW]).abs()
        rows.append(f"| {name} | {' | '.join(times)} | {change.mean():.4f}, {change.max():.2f} |")
    head = "| tried | forward of 90 rows, s (times as fast) | training step of 8 rows, s (times as fast) | pixels change: mean, most |"
    fill_section(page(docs), "tried", [head, "|---|---|---|---|", *rows])


def compiled_model() -> DiffusionModel:
    model = load_model("pocket")
    model.pipe.unet.forward = torch.compile(model.pipe.unet.forward)
    return model


def channels_last_model() -> DiffusionModel:
    model = load_model("pocket")
    model.pipe.unet.to(memory_format=torch.channels_last)
    return model


NOW = "as it is: bf16"
VARIANTS: dict[str, Callable[[], DiffusionModel]] = {
    NOW: lambda: load_model("pocket"),
    "fp32": lambda: load_model("pocket", dtype="fp32"),
    "channels_last": channels_last_model,
    "the other attention": lambda: load_model("pocket"),
    "torch.compile": compiled_model,
}


def choose_attention(name: str, model: DiffusionModel, training: bool) -> None:
    model.set_attention(training=training)
    if name.endswith("attention"):  # the one that "auto" does not choose
        model.pipe.unet.set_attn_processor(AttnProcessor2_0() if training else AttnProcessor())


@torch.no_grad()
def small_images(model: DiffusionModel) -> Tensor:
    """Images with the attention that is installed."""
    return model.decode(model.sample(PROMPTS[:4], list(range(4)), STEPS, GUIDANCE))


def forward_pass(model: DiffusionModel) -> Callable[[], None]:
    """A forward pass of as many rows as an audit has in a batch."""
    x, t, cond = torch.randn(90, *model.latent_shape), torch.randint(0, 1000, (90,)), model.encode(["neon"] * 90)

    @torch.no_grad()
    def forward() -> None:
        model.predict(x, t, cond)

    return forward


PARTS = {"sampling": report_sampling, "kernels": report_kernels, "tried": report_tried}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--part", choices=(*PARTS, "serve"), action="append", help="run this part only; may be repeated")
    args = parser.parse_args()
    if args.part == ["serve"]:
        serve()
        return
    restart_with_environment()
    for part in args.part or PARTS:
        PARTS[part](args.docs)
        print(part, "is done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
