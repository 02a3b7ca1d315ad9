"""The measurements of scripts/gpu_report.py, each of which it runs in a process of its own."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bench_sd import ROOT, SHORT_FIELDS
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
FEW, MORE = 2, 7  # training steps; the difference is what a step takes


@dataclass(frozen=True)
class ProductRate:
    """The largest rate of a matrix product in the dtype of the models, in operations a second."""

    flops: float


@dataclass(frozen=True)
class MethodCost:
    """What an erasure takes.

    Attributes:
        step: seconds of a training step; of a closed form, of all of it.
        steps: of the recipe; 0 for a closed form.
        recorded: forwards that the recipe's teacher cache takes.
        peak: bytes of a short erasure.
        forecast: bytes.
    """

    step: float
    steps: int
    recorded: int
    peak: float
    forecast: float


@dataclass(frozen=True)
class SamplingSpeed:
    """Images, forwards of the denoiser, and operations a second; 0 operations where they cannot be counted."""

    rate: float
    forwards: float
    flops: float


@dataclass(frozen=True)
class CommandTime:
    """Seconds of a command."""

    seconds: float


@dataclass(frozen=True)
class NotMeasured:
    """Why a measurement is missing."""

    why: str


Measured = ProductRate | MethodCost | SamplingSpeed | CommandTime


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


def measure_method(model_name: str, method_name: str, size: str) -> MethodCost:
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
    return MethodCost(step, recipe_steps, recorded, peak["peak_memory_mib"] * 2**20, forecast.method(method_name).peak)


def measure_sampling(model_name: str, way: str, batch: int, size: str) -> SamplingSpeed:
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
    return SamplingSpeed(batch / seconds, model.forwards_per_step * steps * batch / seconds, counter.get_total_flops() / seconds)


def measure_peak(size: str) -> ProductRate:
    """Return the largest rate of a matrix product."""
    n, dtype, device = (8192, torch.float16, "cuda") if torch.cuda.is_available() else (512, torch.float32, "cpu")
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return ProductRate(2 * n**3 / min(seconds_of(lambda: a @ b) for _ in range(10)))


def measure_pocket(what: str, size: str) -> CommandTime:
    """Return the seconds of an ESD erasure of neon, or of an audit of it, by the commands."""
    from app.child_command import child_argv

    with tempfile.TemporaryDirectory() as folder:
        steps = () if size == "true" else ("--steps", "3")
        erase = ("erase", "--concept", "neon", "--method", "esd", *steps, "--out", f"{folder}/edit")
        audit = ("audit", f"{folder}/edit", "--tier", "standard" if size == "true" else "smoke")
        seconds = 0.0
        for command in (erase, audit)[: 1 if what == "esd" else 2]:
            started = time.perf_counter()
            environment = {**os.environ, "ERASURE_CACHE": f"{folder}/cache"}
            done = subprocess.run(child_argv("app.cli", *command), env=environment, capture_output=True, text=True, check=False)
            if done.returncode not in (0, 3, 4):
                raise UserError(done.stderr[-300:])
            seconds = time.perf_counter() - started
    return CommandTime(seconds)


MEASURES: dict[str, Callable[..., Measured]] = {
    "peak": measure_peak,
    "method": measure_method,
    "sampling": measure_sampling,
    "pocket": measure_pocket,
}
RECORDS: dict[str, type[Measured]] = {"peak": ProductRate, "method": MethodCost, "sampling": SamplingSpeed, "pocket": CommandTime}
