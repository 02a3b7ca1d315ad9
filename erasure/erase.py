"""erase(model, concepts, method) -> Edit: the whole way from a concept to a file, resumable in its run folder."""

import importlib.metadata
import resource
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from erasure import bank as banks
from erasure.concept import Concept
from erasure.edit import Edit, EditInfo
from erasure.errors import UserError, unknown
from erasure.families.base import DiffusionModel
from erasure.methods.base import Method, Trained
from erasure.run import Run, write_json
from erasure.training import Loop, train

PACKAGES = ("torch", "diffusers", "transformers", "accelerate")


def recipe(cls: type[Method], concepts: list[Concept], family: str) -> dict[str, Any]:
    """Field values recommended for the first concept's kind on this model family; empty where the defaults stand."""
    return dict(cls.recipes.get((concepts[0].kind, family), {}))


def configure(
    cls: type[Method], concepts: list[Concept], family: str, given: dict[str, Any]
) -> tuple[Method, list[Concept], dict[str, Any]]:
    """Method and concepts with the recipe filled in where nothing was given, and what differs from the paper's defaults.

    Raises:
        UserError: a field the method does not have.
    """
    values = recipe(cls, concepts, family)
    prompts = values.pop("prompts", ())
    if prompts:
        concepts = [c if c.prompts else Concept(**{**asdict(c), "prompts": prompts}) for c in concepts]
    allowed = [f.name for f in fields(cls)]
    for name in given:
        if name not in allowed:
            raise unknown("field", name, allowed)
    values.update(given)
    method = cls(**values)
    differs = {f.name: getattr(method, f.name) for f in fields(cls) if getattr(method, f.name) != f.default}
    return method, concepts, differs


def job_record(model: DiffusionModel, concepts: list[Concept], method: Method, seed: int) -> dict[str, Any]:
    """What identifies an erasure: a hash of it names its run folder."""
    return {
        "task": "erase",
        "base": model.fingerprint(),
        "concepts": [c.record() for c in concepts],
        "method": type(method).__module__.rsplit(".", 1)[-1],
        "version": method.version,
        "fields": asdict(method),
        "seed": seed,
        "compute": str(model.compute).removeprefix("torch."),
    }


def erase(
    model: DiffusionModel,
    concepts: list[Concept],
    method: Method,
    *,
    out: Path,
    seed: int = 0,
    fresh: bool = False,
    report_to: str = "none",
    gradient_checkpointing: bool = False,
) -> Edit:
    """Make an edit that erases the concepts; `model` is left as it was.

    The folder `out` is continued if it holds the same job. It ends with edit.safetensors, edit.json, train.jsonl, timing.json and,
    last, result.json.

    Raises:
        UserError: another job in `out`, an unknown region, a loss that is no number.
    """
    if not isinstance(method, Trained):
        raise UserError(f"{type(method).__name__} is no trained method; this version erases with trained ones.")
    model.region(method.trains())
    run = Run(out, job_record(model, concepts, method, seed), fresh)
    if run.complete:
        return Edit.load(out)
    run.begin()
    begun = time.monotonic()
    recording = method.record(concepts, seed)
    bank = banks.obtain(model, recording)
    recorded = time.monotonic()
    loop = Loop(folder=out, seed=seed, report_to=report_to, gradient_checkpointing=gradient_checkpointing)
    values = train(model, method, bank, loop)
    info = EditInfo(
        method=run.job["method"],
        fields=asdict(method),
        concepts=[c.record() for c in concepts],
        base={"source": model.source, "fingerprint": run.job["base"], "family": model.family},
        seed=seed,
        precision=run.job["compute"],
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
        cost=_cost(method, recording, concepts),
        influence=round(bank.influence(), 5),
    )
    edit = Edit({name: value.to(torch.float16) for name, value in values.items()}, info)
    edit.save(out)
    ended = time.monotonic()
    write_json(
        out / "timing.json",
        {"record_seconds": round(recorded - begun, 2), "train_seconds": round(ended - recorded, 2), "peak_memory_mib": _peak_memory(model)},
    )
    (out / "checkpoint.pt").unlink(missing_ok=True)
    run.finish({"edit": edit.digest(), "cost": info.cost, "bytes": (out / "edit.safetensors").stat().st_size})
    return edit


def _cost(method: Trained, recording: banks.Recording, concepts: list[Concept]) -> dict[str, int]:
    """Passes per sample that this edit needs when nothing is found in a cache and nothing is interrupted."""
    gradients = method.steps * method.batch
    return {
        "sample_gradients": gradients,
        "unet_forwards": gradients + banks.recording_cost(recording),
        "unet_backwards": gradients,
        "text_forwards": len({s for pair in recording.pairs for s in pair}),
    }


def _peak_memory(model: DiffusionModel) -> int:
    if model.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(model.device) / 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
