"""erase(model, concepts, method) -> Edit: the whole way from a concept to a file, resumable in its run folder."""

import importlib.metadata
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erasure.concept import Concept
from erasure.concept_check import DoubtfulConcept, Known, check_cost, known, warning
from erasure.config.seeds import checked
from erasure.config.validation import built
from erasure.edits import Edit, EditInfo, applied
from erasure.errors import NotFinite, UserError, unknown
from erasure.export.model_card import before_after, write_card
from erasure.families.base import Cost, DiffusionModel
from erasure.methods.base import Change, Guided, Method, Play, Solved, Trained
from erasure.storage.files import tell
from erasure.storage.locks import held
from erasure.storage.run import Run, cache_folder, check_tracker, digest, write_json
from erasure.storage.tensor_cache import kept
from erasure.training import recording as recorder
from erasure.training import saliency
from erasure.training.loop import Loop, train

# all that an erasure leaves in its folder, and all that --fresh removes there
WRITES = (
    *("edit.safetensors", "edit.json", "README.md", "before-after-[0-9]*.png", "timing.json"),
    *("train.jsonl", "mask.safetensors", "checkpoint.pt", ".checkpoint.part"),
)
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
        watch: called after every training step, such as erasure.training.preview.Preview.

    Raises:
        UserError: another job in `out`, an unknown region, a loss that is NaN or Inf, a mask for a method that trains nothing, a seed
            out of its range.
        Busy: another process is writing into `out`.
    """
    checked(seed)
    check_tracker(report_to)
    if mask and not isinstance(method, Trained):
        raise UserError(f"--mask is for trained methods; {type(method).__name__} trains nothing.")
    if gradient_checkpointing and not getattr(method, "recomputes", True):
        raise UserError(f"--gradient-checkpointing does not work with {type(method).__name__}, which switches adapters between passes.")
    if isinstance(method, Guided):
        model.check_guidable()
    run = Run(out, job_record(model, concepts, method, seed, after, mask), fresh, WRITES)
    if edit := finished(run, say=False):
        return edit
    loop = Loop(folder=out, seed=seed, report_to=report_to, gradient_checkpointing=gradient_checkpointing, mask=mask, watch=watch)
    with held(out, "erasure erase"):
        return finished(run) or _erased(run, model, concepts, method, after, loop)


def finished(run: Run, say: bool = True) -> Edit | None:
    """The edit of a complete run; None where it is not complete, or damaged, which is told unless `say` is off."""
    result = None if run.fresh else run.result(say)
    if result is None:
        return None
    try:
        edit = Edit.load(run.folder)
        if edit.digest() == result.get("edit"):
            return edit
        damage = f"{run.folder} holds another edit than its result.json says."
    except UserError as error:
        damage = str(error)
    if say:
        tell(f"{damage} It is made anew.")
    return None


def _erased(run: Run, model: DiffusionModel, concepts: list[Concept], method: Method, after: Sequence[Edit], loop: Loop) -> Edit:
    """The work of `erase`, in a folder that is this process's own."""
    out = run.folder
    with applied(model, after):
        if isinstance(method, Trained):
            model.region(method.region)  # complains before anything is written
        run.begin()
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(model.device)
        begun = time.monotonic()
        knowledge = known(model, concepts)
        if doubtful := [answer for answer in knowledge if answer.doubtful]:
            warnings.warn(warning(doubtful), DoubtfulConcept, stacklevel=2)
        change = change_of(model, concepts, method, loop)
        ended = time.monotonic()
        cost = forecast(model, concepts, method).record()
    info = _info(run.job, model, concepts, method, knowledge, cost, change.notes)
    edit = Edit({name: _stored(value) for name, value in change.tensors.items()}, info)
    check_finite(edit)
    edit.save(out)
    with applied(model, after):
        write_card(out, edit, before_after(model, edit), "edit")
    write_json(out / "timing.json", {"seconds": round(ended - begun, 2), **_peak_memory(model)})
    (out / "checkpoint.pt").unlink(missing_ok=True)
    run.finish({"edit": edit.digest(), "cost": cost, "bytes": (out / "edit.safetensors").stat().st_size})
    return edit


def forecast(model: DiffusionModel, concepts: list[Concept], method: Method) -> Cost:
    """Passes of a whole erasure: the method's own and the check whether the model knows the concepts."""
    return method.forecast(model, concepts) + check_cost(concepts)


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
    folder = cache_folder() / "starts" / digest(job)

    def trained() -> dict[str, Tensor]:
        change = train(model, first, recorder.obtain(model, first.record([], 0)), replace(loop, folder=folder, seed=0, mask=None))
        return change.tensors

    with held(folder, "erasure erase", wait=True):  # whoever comes second finds what the first has made
        run = Run(folder, job)
        run.begin()
        tensors = kept(folder / "start.safetensors", trained)
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        if not run.complete:
            run.finish({"tensors": len(tensors)})
    return tensors


def check_finite(edit: Edit) -> None:
    """Whether an edit is all numbers.

    Raises:
        NotFinite: NaN or Inf among its tensors or its figures.
    """
    broken = next((name for name, value in edit.tensors.items() if value.is_floating_point() and not value.isfinite().all()), "")
    if broken:
        raise NotFinite(
            f"the edit has NaN, Inf or values above what fp16 holds (65,504) in {broken}; compute with --dtype fp32, or lower --lr."
        )
    try:
        json.dumps(asdict(edit.info), allow_nan=False)
    except ValueError as error:
        raise NotFinite(
            f"the figures of the edit hold NaN or Inf, so that {edit.info.base['source']} predicts nothing or overflows in "
            f"{edit.info.precision}; check the model, or compute with --dtype fp32."
        ) from error


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


def _peak_memory(model: DiffusionModel) -> dict[str, Any]:
    """The peak in MiB, and what it is the peak of: on a CPU nothing narrower than the whole process can be measured."""
    if model.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(model.device)
        return {"peak_memory_mib": int(peak / 2**20), "peak_memory_of": "tensors on the GPU, during this erasure"}
    if sys.platform == "win32":  # where Python has no resource module
        import psutil

        peak = psutil.Process().memory_info().peak_wset
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # bytes there, KiB elsewhere
    return {
        "peak_memory_mib": int(peak / 2**20),
        "peak_memory_of": "resident memory of the process, from its start to the end of this erasure",
    }
