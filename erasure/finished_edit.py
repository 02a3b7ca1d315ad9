"""The edit that an erasure ends with: built from a method's result and checked, or loaded from a complete run."""

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from erasure.concept_check import ConceptCheck
from erasure.edits import Edit, EditInfo
from erasure.erasure_job import ErasureJob
from erasure.errors import NotFiniteError, UserError
from erasure.families.base import DiffusionModel
from erasure.families.cost import Cost
from erasure.methods.base import MethodResult
from erasure.storage.files import print_message
from erasure.storage.run import Run

RECORDED_PACKAGES = ("torch", "diffusers", "transformers", "accelerate")


def build_edit(
    model: DiffusionModel,
    job: ErasureJob,
    concept_checks: Sequence[ConceptCheck],
    cost: Cost,
    result: MethodResult,
) -> Edit:
    """Return the edit of a method's result, with the record of its origin.

    Args:
        job: what identifies the erasure.
        cost: of the whole erasure.

    Raises:
        NotFiniteError: The edit holds NaN or Inf.
    """
    info = EditInfo(
        method=job.method_name,
        product=job.method.product,
        fields=asdict(job.method),
        concepts=[c.to_dict() for c in job.concepts],
        base={"source": model.source, "fingerprint": job.base, "family": model.family, "after": list(job.after), **job.image_options},
        seed=job.seed,
        precision=job.compute,
        versions={name: importlib.metadata.version(name) for name in RECORDED_PACKAGES},
        cost=cost.to_dict(),
        concept_checks=[check.to_dict() for check in concept_checks],
        notes=result.notes,
    )
    edit = Edit({name: _to_fp16(value) for name, value in result.tensors.items()}, info)
    check_edit_finite(edit)
    return edit


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


def _to_fp16(value: Tensor) -> Tensor:
    """Return floats in fp16, so that a new edit generates the same images as one loaded from disk; indices stay as they are."""
    return value.to(torch.float16) if value.is_floating_point() else value
