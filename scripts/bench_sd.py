"""Measure memory and time of every method at Stable Diffusion 1.5's true size, with random weights: docs/results/performance.md.

    python scripts/bench_sd.py                # one training step each; minutes on a CPU, seconds on a GPU
    python scripts/bench_sd.py --part memory  # what a region adds in training, by arithmetic: docs/guides/stable-diffusion.md

Random weights erase nothing; they take as much memory and time as trained ones. Each method runs in its own process.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fill_docs import fill_section

from erasure.concept import Concept
from erasure.config.registry import list_modules, load_class
from erasure.families.base import DiffusionModel
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.base import Guided, Method, Trained
from erasure.recipes import configure_method
from erasure.training.loop import TrainingOptions
from erasure.training.method_run import run_method

ROOT = Path(__file__).parent.parent
# as short as possible: a step is measured, not an erasure
SHORT_FIELDS: dict[str, dict[str, Any]] = {
    "esd": {"trajectories": 1, "trajectory_steps": 1},
    "salun": {
        "trajectories": 1,
        "trajectory_steps": 1,
        "retain_trajectories": 1,
        "batch": 1,
        "retain_batch": 1,
        "retain_prompts": ("a dog",),
    },
    "advunlearn": {
        "trajectories": 1,
        "trajectory_steps": 1,
        "retain_trajectories": 1,
        "warmup": 0,
        "attack_steps": 1,
        "retain_batch": 1,
        "retain_prompts": ("a dog",),
    },
    "sfd": {
        "batch": 2,
        "retain_prompts": ("a dog",),
        "distill_regression_steps": 1,
        "distill_steps": 1,
        "distill_trajectories": 1,
        "trajectory_steps": 1,
    },
    "fia": {"record_steps": 1, "trajectory_steps": 1},
}
REGIONS = {
    "xattn": ", ESD's default",
    "xattn-kv": "",
    "text-encoder": ", AdvUnlearn's default",
    "noxattn": ", ESD's recipe for nudity",
    "full": ", SalUn's default",
}
BYTES_IN_TRAINING = 4 * 4  # of one weight: value, gradient and two Adam moments in fp32
UNMEASURED = ("sfd_matching",)  # needs a finished generator; its step is an ESD step on the region `full`


def build_model(device: str) -> DiffusionModel:
    sys.path.insert(0, str(ROOT))  # the model builder is part of the tests
    from tests.sd_architecture import pipeline

    pipe = pipeline("sd1", small=False, latent=64).to(device, torch.float16 if device == "cuda" else torch.float32)
    return StableDiffusion(pipe, "random SD 1.5")


def measure_method(name: str, device: str) -> dict[str, Any]:
    """Run one method for a step and return its cost."""
    model = build_model(device)
    fields = {**SHORT_FIELDS.get(name, {}), **({"steps": 1} if issubclass(load_class("erasure.methods", name, Method), Trained) else {})}
    concept = Concept(name="Van Gogh", prompts=("a painting by {} | a painting",))
    method, concepts, _ = configure_method(load_class("erasure.methods", name, Method), [concept], model.family, fields)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run_method(model, [replace(concepts[0], prompts=concept.prompts)], method, TrainingOptions(folder=Path(folder)))
    gpu = device == "cuda"
    memory = torch.cuda.max_memory_allocated() // 2**20 if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "seconds": round(time.monotonic() - start, 1),
        "mib": memory,
        "forwards": model.cost.unet_forwards,
        "backwards": model.cost.unet_backwards,
    }


def report_memory(docs: Path) -> None:
    """Write how many weights a region has, and the memory of their fp32 values, gradients and two Adam moments."""
    model = build_model("cpu")
    parameters = model.parameters()
    lines = ["| region (`--region`) | weights that move | values, gradients and moments |", "|---|---|---|"]
    for region, note in REGIONS.items():
        count = sum(parameters[name].numel() for name in model.parameter_names(region))
        lines.append(f"| `{region}`{note} | {count / 1e6:.1f} M | {count * BYTES_IN_TRAINING / 1e9:.1f} GB |")
    fill_section(docs / "guides" / "stable-diffusion.md", "memory", lines)


def failure_reason(process: subprocess.CompletedProcess[str]) -> str:
    if process.returncode < 0:  # a process that runs out of memory gets signal 9
        return f"killed by signal {-process.returncode}"
    return (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1][:120]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=[n for n in list_modules("erasure.methods") if n not in UNMEASURED])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--part", choices=("steps", "memory"), default="steps")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure_method(args.one, args.device)))
        return
    if args.part == "memory":
        report_memory(args.docs)
        return
    lines = ["| method | UNet forwards | backwards | seconds | peak MiB |", "|---|---|---|---|---|"]
    for name in args.methods:
        if issubclass(load_class("erasure.methods", name, Method), Guided):
            continue
        argv = [sys.executable, __file__, "--one", name, "--device", args.device]
        with tempfile.TemporaryDirectory() as cache:
            process = subprocess.run(
                argv, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", "ERASURE_CACHE": cache}
            )
        if process.returncode:
            lines.append(f"| {name} | did not finish: {failure_reason(process)} | | | |")
            continue
        r = json.loads(process.stdout.strip().splitlines()[-1])
        lines.append(f"| {name} | {r['forwards']} | {r['backwards']} | {r['seconds']} | {r['mib']:,} |")
        print(lines[-1], flush=True)
    hardware = (
        torch.cuda.get_device_name()
        if args.device == "cuda"
        else f"{torch.get_num_threads()} CPU threads, fp32 weights, bf16 compute where native"
    )
    fill_section(args.docs / "results" / "performance.md", "sd", [*lines, "", f"{hardware}."])


if __name__ == "__main__":
    main()
