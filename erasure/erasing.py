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
from erasure.concept_check import ConceptCheck, WeaklyKnownConcept, check_concepts, concept_check_cost, describe_weakly_known
from erasure.config.seeds import check_seed
from erasure.config.validation import build_dataclass
from erasure.edits import Edit, EditInfo, apply_edits
from erasure.errors import NotFiniteError, UserError, unknown_value_error
from erasure.export.model_card import sample_before_after, write_card
from erasure.families.base import Cost, DiffusionModel
from erasure.methods.base import Guided, Method, MethodResult, Trained, TrainingContext, TrainingFree
from erasure.storage.files import print_message
from erasure.storage.locks import lock_folder
from erasure.storage.run import Run, cache_folder, check_tracker, hash_record, write_json
from erasure.storage.tensor_files import load_or_make
from erasure.training import fill_cache as recorder
from erasure.training import saliency
from erasure.training.loop import TrainingOptions, train

# all that an erasure leaves in its folder, and all that --fresh removes there
OUTPUT_FILES = (
    *("edit.safetensors", "edit.json", "README.md", "before-after-[0-9]*.png", "timing.json"),
    *("train.jsonl", "mask.safetensors", "checkpoint.pt", ".checkpoint.part"),
)
RECORDED_PACKAGES = ("torch", "diffusers", "transformers", "accelerate")


def find_recipe(cls: type[Method], concepts: list[Concept], family: str) -> dict[str, Any]:
    """Field values recommended for the first concept's kind on this model family; empty where the defaults stand."""
    return dict(cls.recipes.get((concepts[0].kind, family), {}))


def configure_method(
    cls: type[Method], concepts: list[Concept], family: str, overrides: dict[str, Any]
) -> tuple[Method, list[Concept], dict[str, Any]]:
    """Method and concepts with the recipe filled in where nothing was given, and what differs from the paper's defaults.

    Raises:
        UserError: a field the method does not have, or a value of another type.
    """
    values = find_recipe(cls, concepts, family)
    prompts, anchor = values.pop("prompts", ()), values.pop("anchor", "")
    concepts = [
        Concept(**{**asdict(c), "prompts": c.prompts or prompts, "anchor": c.anchor or (anchor if anchor != c.name else "")})
        for c in concepts
    ]
    allowed = [f.name for f in fields(cls)]
    for name in overrides:
        if name not in allowed:
            raise unknown_value_error("field", name, allowed)
    values.update({name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()})  # files have lists alone
    method = build_dataclass(cls, values, f"method {cls.__module__.rsplit('.', 1)[-1]}")
    non_defaults = {f.name: getattr(method, f.name) for f in fields(cls) if getattr(method, f.name) != f.default}
    return method, concepts, non_defaults


def make_job(
    model: DiffusionModel, concepts: list[Concept], method: Method, seed: int, after: Sequence[Edit] = (), mask: Path | None = None
) -> dict[str, Any]:
    """What identifies an erasure: a hash of it names its run folder."""
    return {
        "task": "erase",
        "base": model.fingerprint(),
        "after": [edit.digest() for edit in after],
        "concepts": [c.to_dict() for c in concepts],
        "method": type(method).__module__.rsplit(".", 1)[-1],
        "version": method.version,
        "fields": asdict(method),
        "mask": saliency.mask_digest(mask) if mask else "",
        "read": recorder.source_digests(method.query(concepts, seed)) if isinstance(method, Trained) else {},
        "seed": seed,
        "compute": str(model.compute_dtype).removeprefix("torch."),
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
    on_step: Callable[[Trained, TrainingContext], None] | None = None,
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
    check_seed(seed)
    check_tracker(report_to)
    if mask and not isinstance(method, Trained):
        raise UserError(f"--mask is for trained methods; {type(method).__name__} trains nothing.")
    if gradient_checkpointing and not getattr(method, "recomputes", True):
        raise UserError(f"--gradient-checkpointing does not work with {type(method).__name__}, which switches adapters between passes.")
    if isinstance(method, Guided):
        model.check_supports_guidance()
    run = Run(out, make_job(model, concepts, method, seed, after, mask), fresh, OUTPUT_FILES)
    if edit := load_finished_edit(run, verbose=False):
        return edit
    options = TrainingOptions(
        folder=out, seed=seed, report_to=report_to, gradient_checkpointing=gradient_checkpointing, mask=mask, on_step=on_step
    )
    with lock_folder(out, "erasure erase"):
        return load_finished_edit(run) or _run_erasure(run, model, concepts, method, after, options)


def load_finished_edit(run: Run, verbose: bool = True) -> Edit | None:
    """The edit of a complete run; None where it is not complete, or damaged, which is told unless `say` is off."""
    result = None if run.fresh else run.read_result(verbose)
    if result is None:
        return None
    try:
        edit = Edit.load(run.folder)
        if edit.digest() == result.get("edit"):
            return edit
        problem = f"{run.folder} holds another edit than its result.json says."
    except UserError as error:
        problem = str(error)
    if verbose:
        print_message(f"{problem} It is made anew.")
    return None


def _run_erasure(
    run: Run, model: DiffusionModel, concepts: list[Concept], method: Method, after: Sequence[Edit], options: TrainingOptions
) -> Edit:
    """The work of `erase`, in a folder that is this process's own."""
    out = run.folder
    with apply_edits(model, after):
        if isinstance(method, Trained):
            model.parameter_names(method.region)  # complains before anything is written
        run.begin()
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(model.device)
        started = time.monotonic()
        concept_checks = check_concepts(model, concepts)
        if weakly_known := [check for check in concept_checks if check.doubtful]:
            warnings.warn(describe_weakly_known(weakly_known), WeaklyKnownConcept, stacklevel=2)
        result = run_method(model, concepts, method, options)
        ended = time.monotonic()
        cost = forecast_erasure(model, concepts, method).to_dict()
    info = _make_info(run.job, model, concepts, method, concept_checks, cost, result.notes)
    edit = Edit({name: _to_fp16(value) for name, value in result.tensors.items()}, info)
    check_edit_finite(edit)
    edit.save(out)
    with apply_edits(model, after):
        write_card(out, edit, sample_before_after(model, edit), "edit")
    write_json(out / "timing.json", {"seconds": round(ended - started, 2), **_peak_memory(model)})
    (out / "checkpoint.pt").unlink(missing_ok=True)
    run.finish({"edit": edit.digest(), "cost": cost, "bytes": (out / "edit.safetensors").stat().st_size})
    return edit


def forecast_erasure(model: DiffusionModel, concepts: list[Concept], method: Method) -> Cost:
    """Passes of a whole erasure: the method's own and the check whether the model knows the concepts."""
    return method.forecast_cost(model, concepts) + concept_check_cost(concepts)


def run_method(model: DiffusionModel, concepts: list[Concept], method: Method, options: TrainingOptions) -> MethodResult:
    """What the method finds, in whichever of the three shapes it has."""
    match method:
        case Trained():
            return train(
                model,
                method,
                recorder.load_or_fill(model, method.query(concepts, options.seed)),
                options,
                load_or_pretrain(model, method, options),
            )
        case TrainingFree():
            return method.solve(model, concepts, options.seed)
        case Guided():
            return MethodResult({}, {"text": method.guidance_prompt(concepts)})
        case _:
            raise TypeError(f"{type(method).__name__} has none of the shapes of erasure.methods.base")


def load_or_pretrain(model: DiffusionModel, method: Trained, options: TrainingOptions) -> dict[str, Tensor]:
    """What the training before this one ended with, from the cache or made now; it is resumed like any other."""
    pretraining = method.pretraining()
    if pretraining is None:
        return {}
    job = {
        "task": "start",
        "base": model.fingerprint(),
        "method": type(pretraining).__name__,
        "fields": asdict(pretraining),
        "compute": str(model.compute_dtype),
    }
    folder = cache_folder() / "starts" / hash_record(job)

    def trained() -> dict[str, Tensor]:
        result = train(
            model, pretraining, recorder.load_or_fill(model, pretraining.query([], 0)), replace(options, folder=folder, seed=0, mask=None)
        )
        return result.tensors

    with lock_folder(folder, "erasure erase", wait=True):  # whoever comes second finds what the first has made
        run = Run(folder, job)
        run.begin()
        tensors = load_or_make(folder / "start.safetensors", trained)
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        if not run.is_complete:
            run.finish({"tensors": len(tensors)})
    return tensors


def check_edit_finite(edit: Edit) -> None:
    """Whether an edit is all numbers.

    Raises:
        NotFinite: NaN or Inf among its tensors or its figures.
    """
    non_finite = next((name for name, value in edit.tensors.items() if value.is_floating_point() and not value.isfinite().all()), "")
    if non_finite:
        raise NotFiniteError(
            f"the edit has NaN, Inf or values above what fp16 holds (65,504) in {non_finite}; compute with --dtype fp32, or lower --lr."
        )
    try:
        json.dumps(asdict(edit.info), allow_nan=False)
    except ValueError as error:
        raise NotFiniteError(
            f"the figures of the edit hold NaN or Inf, so that {edit.info.base['source']} predicts nothing or overflows in "
            f"{edit.info.precision}; check the model, or compute with --dtype fp32."
        ) from error


def _make_info(
    job: dict[str, Any],
    model: DiffusionModel,
    concepts: list[Concept],
    method: Method,
    concept_checks: list[ConceptCheck],
    cost: dict[str, int],
    notes: dict[str, Any],
) -> EditInfo:
    return EditInfo(
        method=job["method"],
        product=method.product,
        fields=asdict(method),
        concepts=[c.to_dict() for c in concepts],
        base={"source": model.source, "fingerprint": job["base"], "family": model.family, "after": job["after"]},
        seed=job["seed"],
        precision=job["compute"],
        versions={name: importlib.metadata.version(name) for name in RECORDED_PACKAGES},
        cost=cost,
        concept_checks=[check.to_dict() for check in concept_checks],
        notes=notes,
    )


def _to_fp16(value: Tensor) -> Tensor:
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
