"""erase(model, concepts, method) -> Edit: the whole way from a concept to a file, resumable in its run folder."""

import importlib.metadata
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from erasure import recorder, saliency
from erasure.concept import Concept
from erasure.edit import Edit, EditInfo
from erasure.errors import UserError, unknown
from erasure.export.model_card import before_after, write_card
from erasure.families.base import DiffusionModel
from erasure.known import DoubtfulConcept, Known, known
from erasure.methods.base import Change, Guided, Method, Play, Solved, Trained
from erasure.run import Run, cache_folder, digest, write_json
from erasure.shapes import built
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
        UserError: a field the method does not have, or a value of another type.
    """
    values = recipe(cls, concepts, family)
    prompts, anchor = values.pop("prompts", ()), values.pop("anchor", "")
    concepts = [
        Concept(**{**asdict(c), "prompts": c.prompts or prompts, "anchor": c.anchor or (anchor if anchor != c.name else "")})
        for c in concepts
    ]
    allowed = [f.name for f in fields(cls)]
    for name in given:
        if name not in allowed:
            raise unknown("field", name, allowed)
    values.update({name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})  # files have lists alone
    method = built(cls, values, f"method {cls.__module__.rsplit('.', 1)[-1]}")
    differs = {f.name: getattr(method, f.name) for f in fields(cls) if getattr(method, f.name) != f.default}
    return method, concepts, differs


def job_record(
    model: DiffusionModel, concepts: list[Concept], method: Method, seed: int, after: Sequence[Edit] = (), mask: Path | None = None
) -> dict[str, Any]:
    """What identifies an erasure: a hash of it names its run folder."""
    return {
        "task": "erase",
        "base": model.fingerprint(),
        "after": [edit.digest() for edit in after],
        "concepts": [c.record() for c in concepts],
        "method": type(method).__module__.rsplit(".", 1)[-1],
        "version": method.version,
        "fields": asdict(method),
        "mask": saliency.digest_of(mask) if mask else "",
        "read": recorder.contents(method.record(concepts, seed)) if isinstance(method, Trained) else {},
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
    after: Sequence[Edit] = (),
    mask: Path | None = None,
    fresh: bool = False,
    report_to: str = "none",
    gradient_checkpointing: bool = False,
    watch: Callable[[Trained, Play], None] | None = None,
) -> Edit:
    """Make an edit that erases the concepts; `model` is left as it was.

    The folder `out` is continued if it holds the same job. It ends with edit.safetensors, edit.json, README.md (a card with pictures),
    timing.json, for trained methods train.jsonl and mask.safetensors where there is one, and, last, result.json.

    Args:
        after: edits that are in place while this one is made; it counts from them and asks for them when it is applied.
        mask: a saved saliency mask; only its entries move.
        watch: called after every training step, such as erasure.preview.Preview.

    Raises:
        UserError: another job in `out`, an unknown region, a loss that is no number, a mask for a method that trains nothing.
    """
    if mask and not isinstance(method, Trained):
        raise UserError(f"--mask is for trained methods; {type(method).__name__} trains nothing.")
    if gradient_checkpointing and not getattr(method, "recomputes", True):
        raise UserError(f"--gradient-checkpointing does not work with {type(method).__name__}, which switches adapters between passes.")
    run = Run(out, job_record(model, concepts, method, seed, after, mask), fresh)
    if run.complete:
        return Edit.load(out)
    with applied(model, after):
        if isinstance(method, Trained):
            model.region(method.region)  # complains before anything is written
        run.begin()
        begun = time.monotonic()
        knowledge = [known(model, concept, seed) for concept in concepts]
        for answer in knowledge:
            if answer.doubtful:
                warnings.warn(answer.warning(), DoubtfulConcept, stacklevel=2)
        loop = Loop(folder=out, seed=seed, report_to=report_to, gradient_checkpointing=gradient_checkpointing, mask=mask, watch=watch)
        change = change_of(model, concepts, method, loop)
        ended = time.monotonic()
        cost = method.forecast(model, concepts).record()
    info = _info(run.job, model, concepts, method, knowledge, cost, change.notes)
    edit = Edit({name: _stored(value) for name, value in change.tensors.items()}, info)
    edit.save(out)
    write_json(out / "timing.json", {"seconds": round(ended - begun, 2), "peak_memory_mib": _peak_memory(model)})
    with applied(model, after):
        write_card(out, edit, before_after(model, edit), "edit")
    (out / "checkpoint.pt").unlink(missing_ok=True)
    run.finish({"edit": edit.digest(), "cost": cost, "bytes": (out / "edit.safetensors").stat().st_size})
    return edit


def change_of(model: DiffusionModel, concepts: list[Concept], method: Method, loop: Loop) -> Change:
    """What the method finds, in whichever of the three shapes it has."""
    match method:
        case Trained():
            return train(model, method, recorder.obtain(model, method.record(concepts, loop.seed)), loop, beginning(model, method, loop))
        case Solved():
            return method.solve(model, concepts, loop.seed)
        case Guided():
            return Change({}, {"text": method.text(concepts)})
        case _:
            raise TypeError(f"{type(method).__name__} has none of the shapes of erasure.methods.base")


def beginning(model: DiffusionModel, method: Trained, loop: Loop) -> dict[str, Tensor]:
    """What the training before this one ended with, from the cache or made now; it is resumed like any other."""
    first = method.before()
    if first is None:
        return {}
    job = {
        "task": "start",
        "base": model.fingerprint(),
        "method": type(first).__name__,
        "fields": asdict(first),
        "compute": str(model.compute),
    }
    run = Run(cache_folder() / "starts" / digest(job), job)
    file = run.folder / "start.safetensors"
    if not run.complete:
        run.begin()
        change = train(model, first, recorder.obtain(model, first.record([], 0)), replace(loop, folder=run.folder, seed=0, mask=None))
        save_file(change.tensors, file)
        (run.folder / "checkpoint.pt").unlink(missing_ok=True)
        run.finish({"tensors": len(change.tensors)})
    return load_file(file)


@contextmanager
def applied(model: DiffusionModel, edits: Sequence[Edit], other_base: bool = False, strength: float = 1.0) -> Iterator[None]:
    """Edits in place, in this order, and out again on exit."""
    done: list[Edit] = []
    try:
        for edit in edits:
            done.append(edit.apply(model.pipe, strength, other_base))
        yield
    finally:
        for edit in reversed(done):
            edit.revert(model.pipe)


def _info(
    job: dict[str, Any],
    model: DiffusionModel,
    concepts: list[Concept],
    method: Method,
    knowledge: list[Known],
    cost: dict[str, int],
    notes: dict[str, Any],
) -> EditInfo:
    return EditInfo(
        method=job["method"],
        product=method.product,
        fields=asdict(method),
        concepts=[c.record() for c in concepts],
        base={"source": model.source, "fingerprint": job["base"], "family": model.family, "after": job["after"]},
        seed=job["seed"],
        precision=job["compute"],
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
        cost=cost,
        known=[answer.record() for answer in knowledge],
        notes=notes,
    )


def _stored(value: Tensor) -> Tensor:
    """Values in fp16, also in memory, so that an edit just made draws what one from disk draws; indices as they are."""
    return value.to(torch.float16) if value.is_floating_point() else value


def _peak_memory(model: DiffusionModel) -> int:
    if model.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(model.device) / 2**20)
    if sys.platform == "win32":  # where Python has no resource module
        import psutil

        return psutil.Process().memory_info().peak_wset // 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
