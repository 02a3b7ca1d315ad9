"""erase(model, concepts, method) -> Edit: from a concept to a file, resumable in its run folder."""

import importlib.metadata
import json
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
from erasure.families.base import DiffusionModel
from erasure.families.cost import Cost
from erasure.methods.base import Guided, Method, MethodResult, Trained, TrainingContext, TrainingFree
from erasure.peak_memory import measure_peak_memory, reset_peak_memory
from erasure.storage.files import print_message
from erasure.storage.locks import lock_folder
from erasure.storage.run import Run, cache_folder, check_tracker, hash_record, write_json
from erasure.storage.tensor_files import load_or_make
from erasure.training import fill_cache, saliency
from erasure.training.loop import TrainingOptions, train

# everything that an erasure writes into its folder, and that --fresh removes there
OUTPUT_FILES = (
    *("edit.safetensors", "edit.json", "README.md", "before-after-[0-9]*.png", "timing.json"),
    *("train.jsonl", "mask.safetensors", "checkpoint.pt", ".checkpoint.part"),
)
RECORDED_PACKAGES = ("torch", "diffusers", "transformers", "accelerate")


def find_recipe(cls: type[Method], concepts: list[Concept], family: str) -> dict[str, Any]:
    """Return the recommended field values for the first concept's kind on this model family; empty if the defaults apply."""
    return dict(cls.recipes.get((concepts[0].kind, family), {}))


def configure_method(
    cls: type[Method], concepts: list[Concept], family: str, overrides: dict[str, Any]
) -> tuple[Method, list[Concept], dict[str, Any]]:
    """Return the method, the concepts, and the fields that differ from the paper's defaults; the recipe fills in what is not given.

    Args:
        overrides: field values that take precedence over the recipe.

    Raises:
        UserError: The method has no such field, or a value has the wrong type.
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
    # JSON and YAML have only lists
    values.update({name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()})
    method = build_dataclass(cls, values, f"method {cls.__module__.rsplit('.', 1)[-1]}")
    non_defaults = {f.name: getattr(method, f.name) for f in fields(cls) if getattr(method, f.name) != f.default}
    return method, concepts, non_defaults


def make_job(
    model: DiffusionModel, concepts: list[Concept], method: Method, seed: int, after: Sequence[Edit] = (), mask: Path | None = None
) -> dict[str, Any]:
    """Return what identifies an erasure; its hash names the run folder."""
    return {
        "task": "erase",
        "base": model.fingerprint(),
        "after": [edit.digest() for edit in after],
        "concepts": [c.to_dict() for c in concepts],
        "method": type(method).__module__.rsplit(".", 1)[-1],
        "version": method.version,
        "fields": asdict(method),
        "mask": saliency.mask_digest(mask) if mask else "",
        "sources": fill_cache.source_digests(method.query(concepts, seed)) if isinstance(method, Trained) else {},
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
    """Make an edit that erases the concepts; `model` stays unchanged.

    If `out` holds the same job, it is continued. In the end it holds edit.safetensors, edit.json, README.md (a model card with images),
    timing.json, for trained methods train.jsonl and (if there is a mask) mask.safetensors, and finally result.json.

    Args:
        out: the run folder.
        after: edits that are applied while this one is made; it builds on them and requires them when it is applied.
        mask: a saved saliency mask; only its entries are trained.
        fresh: start over instead of continuing.
        report_to: an experiment tracker, or "none".
        on_step: called after every training step, such as erasure.training.preview.Preview.

    Raises:
        UserError: `out` holds another job, the region is unknown, the loss is NaN or Inf, a mask or gradient checkpointing does not
            work with the method, or the seed is out of range.
        NotFiniteError: The edit holds NaN or Inf.
        FolderLocked: Another process is writing into `out`.
    """
    check_seed(seed)
    check_tracker(report_to)
    if mask and not isinstance(method, Trained):
        raise UserError(f"--mask is for trained methods; {type(method).__name__} trains nothing.")
    if gradient_checkpointing and not getattr(method, "supports_gradient_checkpointing", True):
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
    """Return the edit of a complete run; None if the run is incomplete or damaged (a message tells so if `verbose`)."""
    result = None if run.fresh else run.read_result(verbose)
    if result is None:
        return None
    try:
        edit = Edit.load(run.folder)
        if edit.digest() == result.get("edit"):
            return edit
        problem = f"{run.folder} holds a different edit than its result.json says."
    except UserError as error:
        problem = str(error)
    if verbose:
        print_message(f"{problem} It is made anew.")
    return None


def _run_erasure(
    run: Run, model: DiffusionModel, concepts: list[Concept], method: Method, after: Sequence[Edit], options: TrainingOptions
) -> Edit:
    """Do the work of `erase`, in a folder that this process has locked."""
    out = run.folder
    with apply_edits(model, after):
        if isinstance(method, Trained):
            model.parameter_names(method.region)  # raises for an unknown region before anything is written
        run.begin()
        reset_peak_memory(model.device)
        started = time.monotonic()
        concept_checks = check_concepts(model, concepts)
        if weakly_known := [check for check in concept_checks if check.weakly_known]:
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
    write_json(out / "timing.json", {"seconds": round(ended - started, 2), **measure_peak_memory(model.device)})
    (out / "checkpoint.pt").unlink(missing_ok=True)
    run.finish({"edit": edit.digest(), "cost": cost, "bytes": (out / "edit.safetensors").stat().st_size})
    return edit


def forecast_erasure(model: DiffusionModel, concepts: list[Concept], method: Method) -> Cost:
    """Return the cost of a whole erasure: the method's own and that of the concept check."""
    return method.forecast_cost(model, concepts) + concept_check_cost(concepts)


def run_method(model: DiffusionModel, concepts: list[Concept], method: Method, options: TrainingOptions) -> MethodResult:
    """Run the method, which has one of the three shapes of erasure.methods.base."""
    match method:
        case Trained():
            return train(
                model,
                method,
                fill_cache.load_or_fill(model, method.query(concepts, options.seed)),
                options,
                load_or_pretrain(model, method, options),
            )
        case TrainingFree():
            return method.solve(model, concepts, options.seed)
        case Guided():
            return MethodResult({}, {"prompt": method.guidance_prompt(concepts)})
        case _:
            raise TypeError(f"{type(method).__name__} has none of the shapes of erasure.methods.base")


def load_or_pretrain(model: DiffusionModel, method: Trained, options: TrainingOptions) -> dict[str, Tensor]:
    """Return the tensors of the method's pretraining, from the cache or trained now; an interrupted pretraining is resumed."""
    pretraining = method.pretraining()
    if pretraining is None:
        return {}
    job = {
        "task": "pretrain",
        "base": model.fingerprint(),
        "method": type(pretraining).__name__,
        "fields": asdict(pretraining),
        "compute": str(model.compute_dtype),
    }
    folder = cache_folder() / "pretraining" / hash_record(job)

    def pretrain() -> dict[str, Tensor]:
        cache = fill_cache.load_or_fill(model, pretraining.query([], 0))
        return train(model, pretraining, cache, replace(options, folder=folder, seed=0, mask=None)).tensors

    with lock_folder(folder, "erasure erase", wait=True):  # a second process waits and loads what the first one made
        run = Run(folder, job)
        run.begin()
        tensors = load_or_make(folder / "pretrained.safetensors", pretrain)
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        if not run.is_complete:
            run.finish({"tensors": len(tensors)})
    return tensors


def check_edit_finite(edit: Edit) -> None:
    """Check that an edit's tensors and figures are finite.

    Raises:
        NotFiniteError: They hold NaN or Inf.
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
    """Return floats in fp16, so that a new edit generates the same images as one loaded from disk; indices stay as they are."""
    return value.to(torch.float16) if value.is_floating_point() else value
