"""Measure a GPU with true-size models of random weights, and pocket with its own: the section "On a GPU" of docs/results/performance.md.

    python scripts/gpu_report.py                        # on a GPU: at most eight minutes
    python scripts/gpu_report.py --size tiny            # the same code on tiny models, on a CPU too; writes no page unless --docs is given

Every measurement runs in a process of its own and is kept in --work, so a second run continues. What does not fit into --minutes is named
as not measured. Random weights erase nothing; they take as much memory and time as trained ones.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_sd import ROOT, SHORT_FIELDS
from fill_docs import fill_section
from torch.utils.flop_counter import FlopCounterMode

from erasure.concept import Concept
from erasure.config.registry import load_class
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.loading.skeleton import PipelineRecord, assemble_pipeline, build_skeleton, read_released
from erasure.memory.forecast import ModelForecast
from erasure.methods.base import Method, Trained
from erasure.peak_memory import measure_peak_memory, reset_peak_memory
from erasure.recipes import configure_method
from erasure.training.loop import TrainingOptions
from erasure.training.method_run import run_method
from erasure.training.teacher_cache import query_cost

sys.path.insert(0, str(ROOT))  # the tokenizer is part of the tests
from tests.sd_architecture import clip_tokenizer

CONFIGS = {"sd15": "sd15.json", "sdxl": "sdxl.json"}
METHODS = {"sd15": ("esd", "uce", "fia", "salun", "advunlearn", "sfd"), "sdxl": ("esd", "uce", "fia", "salun")}
GOALS = {"esd": 8, "uce": 8, "fia": 8, "salun": 24}  # GB of an SD 1.5 erasure that takes less than two minutes
BATCHES = (1, 8, 32)
WAYS = ("diffusers", "ours", "ours, compiled", "ours, xformers")
FEW, MORE = 2, 7  # training steps; the difference is what a step takes
GIB = 2**30


def tiny_record(record: PipelineRecord) -> PipelineRecord:
    """Return the record with a tenth of the width, and images of 64 x 64 pixels."""
    networks = {name: dict(config) for name, config in record.networks.items()}
    unet = networks["unet"]
    unet["block_out_channels"] = [32 * (i + 1) for i in range(len(unet["block_out_channels"]))]
    unet["sample_size"] = 8
    networks["vae"]["block_out_channels"] = [32] * len(networks["vae"]["block_out_channels"])
    if unet.get("attention_head_dim") == [5, 10, 20]:
        unet["attention_head_dim"] = [1, 2, 3]
    return replace(record, networks=networks)


def build_model(name: str, size: str) -> DiffusionModel:
    """Return a model with random weights on the GPU, or on the CPU where there is none."""
    record = read_released(CONFIGS[name])
    record = tiny_record(record) if size == "tiny" else record
    on_gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16 if on_gpu else torch.float32)
    with torch.device("cuda" if on_gpu else "cpu"):
        pipe = assemble_pipeline(record)
    torch.set_default_dtype(torch.float32)
    for part in record.spec.tokenizers:  # with a true vocabulary, so that prompts differ
        setattr(pipe, part, clip_tokenizer())
    return record.spec.open(pipe, f"random {name}", precision="auto", attention="auto")


def seconds_of(work: Callable[[], object]) -> float:
    """Return what some work takes, its kernels on the GPU included."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def measure_method(model_name: str, method_name: str, size: str) -> dict[str, Any]:
    """Return seconds of a step (of a closed form: of all of it) and the peak memory of a short erasure, with the forecast beside it."""
    model = build_model(model_name, size)
    cls = load_class("erasure.methods", method_name, Method)
    trained = issubclass(cls, Trained)
    concept = Concept(name="Van Gogh", prompts=("a painting by {} | a painting",))
    recorded, recipe_steps = 0, 0
    recipe, concepts, _ = configure_method(cls, [Concept(name="Van Gogh")], model.family, {})
    if isinstance(recipe, Trained):
        recipe_steps, recorded = recipe.steps, query_cost(recipe.query(concepts, 0), model.forwards_per_step)

    def erase(steps: int) -> None:
        fields = {name: value for name, value in SHORT_FIELDS.get(method_name, {}).items() if name not in ("batch", "retain_batch")}
        fields |= {"steps": steps} if trained else {}
        fields |= {"candidate_fraction": 0.3} if method_name == "fia" and size == "tiny" else {}  # of few weights, some must be chosen
        method, concepts, _ = configure_method(cls, [concept], model.family, fields)
        with tempfile.TemporaryDirectory() as folder:
            run_method(model, [replace(concepts[0], prompts=concept.prompts)], method, TrainingOptions(folder=Path(folder)))

    erase(1)
    reset_peak_memory(model.device)
    few = seconds_of(lambda: erase(FEW))
    step = (seconds_of(lambda: erase(MORE)) - few) / (MORE - FEW) if trained else few
    peak = measure_peak_memory(model.device)
    record = read_released(CONFIGS[model_name])
    forecast = ModelForecast(build_skeleton(tiny_record(record) if size == "tiny" else record, model_name, torch.cuda.is_available()))
    return {
        "step": step,
        "steps": recipe_steps,
        "recorded": recorded,
        "peak": peak["peak_memory_mib"] * 2**20,
        "forecast": forecast.method(method_name).peak / GIB,
    }


def measure_sampling(model_name: str, way: str, batch: int, size: str) -> dict[str, Any]:
    """Return images a second of 20 steps with guidance: the median of three, after one that does not count."""
    model = build_model(model_name, size)
    steps, guidance, prompts = (20 if size == "true" else 2), 7.5, ["a painting"] * batch
    pipe: Any = model.pipe
    pipe.set_progress_bar_config(disable=True)
    if way == "ours, compiled":
        model.denoiser.forward = torch.compile(model.denoiser.forward)  # type: ignore[method-assign]
    if way == "ours, xformers":
        pipe.unet.enable_xformers_memory_efficient_attention()

    def diffusers() -> None:
        pipe(prompts, num_inference_steps=steps, guidance_scale=guidance, output_type="pt")

    @torch.no_grad()
    def ours() -> None:
        model.decode(model.sample(prompts, list(range(batch)), steps, guidance))

    work = diffusers if way == "diffusers" else ours
    work()
    seconds = statistics.median(seconds_of(work) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        if way != "ours, compiled":
            work()
    return {
        "rate": batch / seconds,
        "forwards": model.forwards_per_step * steps * batch / seconds,
        "flops": counter.get_total_flops() / seconds,
    }


def measure_peak(size: str) -> dict[str, Any]:
    """Return the largest rate of a matrix product in the dtype of the models, in operations a second."""
    n, dtype, device = (8192, torch.float16, "cuda") if torch.cuda.is_available() else (512, torch.float32, "cpu")
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return {"flops": 2 * n**3 / min(seconds_of(lambda: a @ b) for _ in range(10))}


def measure_pocket(what: str, size: str) -> dict[str, Any]:
    """Return the seconds of an ESD erasure of neon, or of an audit of it, by the commands."""
    from app.child_command import child_argv

    with tempfile.TemporaryDirectory() as folder:
        steps = () if size == "true" else ("--steps", "3")
        erase = ("erase", "--concept", "neon", "--method", "esd", *steps, "--out", f"{folder}/edit")
        audit = ("audit", f"{folder}/edit", "--tier", "standard" if size == "true" else "smoke")
        seconds = 0.0
        for command in (erase, audit)[: 1 if what == "esd" else 2]:
            started = time.perf_counter()
            done = subprocess.run(child_argv("app.cli", *command), capture_output=True, text=True, check=False)
            if done.returncode not in (0, 3, 4):
                raise UserError(done.stderr[-300:])
            seconds = time.perf_counter() - started
    return {"seconds": seconds}


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "peak": measure_peak,
    "method": measure_method,
    "sampling": measure_sampling,
    "pocket": measure_pocket,
}


def list_measurements(size: str) -> list[tuple[str, ...]]:
    """Return every measurement, the most important first."""
    sampling = [("sampling", "sd15", way, str(batch)) for batch in BATCHES for way in WAYS]
    return [
        ("peak",),
        *(("method", "sd15", method) for method in METHODS["sd15"]),
        *(sampling if size == "true" else [entry for entry in sampling if entry[3] == "1" and entry[2] != "ours, compiled"]),
        *(("pocket", what) for what in ("esd", "audit") if size == "true" or what == "esd"),
        *(("method", "sdxl", method) for method in METHODS["sdxl"]),
        *(("sampling", "sdxl", way, "1") for way in WAYS[:2]),
    ]


def run_measurement(entry: tuple[str, ...], size: str, work: Path, deadline: float) -> dict[str, Any]:
    """Run one measurement in its own process, or read it from an earlier run; what fails or has no time says why."""
    file = work / f"{'-'.join(entry).replace(', ', '-')}-{size}.json"
    if file.is_file():
        return dict(json.loads(file.read_text()))
    left = deadline - time.monotonic()
    if left < 5:
        return {"missing": "no time was left"}
    argv = [sys.executable, __file__, "--size", size, "--one", json.dumps(entry)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=left)
    except subprocess.TimeoutExpired:
        return {"missing": "no time was left"}
    if done.returncode:
        return {"missing": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:160]}
    file.write_text(done.stdout.strip().splitlines()[-1])
    return dict(json.loads(file.read_text()))


def method_rows(results: dict[tuple[str, ...], dict[str, Any]]) -> list[str]:
    rows = [
        "| model | method | a step, s | steps | steps alone, min | peak, GB | forecast, GB | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry, r in results.items():
        if entry[0] != "method":
            continue
        if "missing" in r:
            rows.append(f"| {entry[1]} | {entry[2]} | not measured: {r['missing']} | | | | | |")
            continue
        # the teacher cache at the speed of sampling with the largest batch that was measured
        speed = max((other.get("forwards", 0) for key, other in results.items() if key[:3] == ("sampling", entry[1], "ours")), default=0)
        minutes = (r["step"] * max(1, r["steps"]) + (r["recorded"] / speed if speed else 0)) / 60
        goal = GOALS.get(entry[2], 0) if entry[1] == "sd15" else 0
        met = "" if not goal else f"under 2 min and {goal} GB: {'met' if minutes < 2 and r['peak'] / 1e9 < goal else 'missed'}"
        cells = [
            f"{r['step']:.3f}",
            str(r["steps"] or "none"),
            f"{minutes:.1f}",
            f"{r['peak'] / 1e9:.1f}",
            f"{r['forecast'] * GIB / 1e9:.1f}",
        ]
        rows.append(f"| {entry[1]} | {entry[2]} | {' | '.join(cells)} | {met} |")
    return rows


def sampling_rows(results: dict[tuple[str, ...], dict[str, Any]]) -> list[str]:
    rows = [
        "| model | images at once | sampler | images a second | times diffusers' | share of the peak of products |",
        "|---|---|---|---|---|---|",
    ]
    peak = results.get(("peak",), {}).get("flops", 0)
    for entry, r in results.items():
        if entry[0] != "sampling":
            continue
        _, model, way, batch = entry
        if "missing" in r:
            rows.append(f"| {model} | {batch} | {way} | not measured: {r['missing']} | | |")
            continue
        base = results.get(("sampling", model, "diffusers", batch), {}).get("rate", 0)
        share = f"{100 * r['flops'] / peak:.0f} %" if peak and r["flops"] else ""
        rows.append(f"| {model} | {batch} | {way} | {r['rate']:.2f} | {r['rate'] / base:.2f} | {share} |" if base else "")
    return [row for row in rows if row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("true", "tiny"), default="true")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--work", type=Path, default=Path("runs/gpu-report"))
    parser.add_argument("--docs", type=Path, help="default: docs for the true size, none for tiny")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, *words = json.loads(args.one)
        print(json.dumps(MEASURES[name](*(int(w) if w.isdecimal() else w for w in words), size=args.size)))
        return
    if args.size == "true" and not torch.cuda.is_available():
        raise SystemExit("no GPU is here; --size tiny runs the same measurements on tiny models.")
    args.work.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    results = {}
    for entry in list_measurements(args.size):
        results[entry] = run_measurement(entry, args.size, args.work, deadline)
        print(" ".join(entry), results[entry], flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    pocket = [f"{entry[1]}: {r.get('missing') or str(round(r['seconds'])) + ' s'}" for entry, r in results.items() if entry[0] == "pocket"]
    lines = [f"{device}, {args.size} size.", "", *method_rows(results), "", *sampling_rows(results), "", f"Pocket, {', '.join(pocket)}."]
    print("\n".join(lines))
    if docs := args.docs or (Path("docs") if args.size == "true" else None):
        fill_section(docs / "results" / "performance.md", "gpu", lines)


if __name__ == "__main__":
    main()
