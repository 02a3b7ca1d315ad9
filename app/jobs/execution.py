"""What a job's own process does: erase, then audit."""

import time
import traceback
from pathlib import Path
from typing import Any

from app.confirmation import confirm
from app.jobs.plan import JobSpec
from app.jobs.queue import read_progress, write_claim
from erasure.concept_hints import find_hints
from erasure.config.registry import load_class
from erasure.edits import Edit, check_distinct
from erasure.erasing import configure_method, erase
from erasure.errors import Unfinished, UserError
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.methods.base import Method, Trained, TrainingContext
from erasure.storage.files import is_disk_full, write_checksummed_json
from erasure.storage.locks import lock_folder
from erasure.training.preview import Preview
from eval.audit import AuditPlan, audit
from eval.report.html import write_report
from eval.scoring.judge_scores import check_judges_fit
from eval.suites.suite import load_suite


def run_job(folder: Path, spec: JobSpec) -> None:
    """Do the job in a folder, from wherever it stands; errors are left in error.json and raised.

    Raises:
        Busy: another process works on it.
        Unfinished: it was cancelled, or the disk is full; then there is no error.json, and the same command continues.
    """
    with lock_folder(folder, "erasure jobs"):
        state = read_progress(folder).state
        if state == "cancelled":
            raise Unfinished(f"{folder.name} was cancelled before it began; `jobs run --retry` or the page's Continue runs it again.")
        if state != "done":
            _run_job(folder, spec)


def _run_job(folder: Path, spec: JobSpec) -> None:
    """The work of `work`, in a folder that is this process's own."""
    start = time.monotonic()
    try:
        write_claim(folder, "starting", 0)
        model = load_model(spec.model)
        plan_audits(model, spec)  # a wrong suite, tier or model costs no erasure
        edits = list(check_distinct([Edit.load(path) for path in spec.edits])) or [erase_concepts(model, folder, spec)]
        audits = run_audits(model, folder, spec, edits) if spec.suite else []
    except Unfinished:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        write_checksummed_json(
            folder / "error.json", {"error": message, "trace": "" if isinstance(error, UserError) else traceback.format_exc()}
        )
        raise
    seconds = round(time.monotonic() - start, 1)
    write_checksummed_json(folder / "done.json", {"edits": [edit.digest() for edit in edits], "audits": audits, "seconds": seconds})
    (folder / "claim.json").unlink(missing_ok=True)


def plan_audits(model: DiffusionModel, spec: JobSpec) -> list[AuditPlan]:
    """The audits that a job ends with, before anything is erased; none where it names no suite.

    Raises:
        UserError: no such suite or tier, a suite without the concepts, or one whose judges cannot read this model's pictures.
    """
    if not spec.suite:
        return []
    suite = load_suite(spec.suite)
    check_judges_fit(model, suite)
    if spec.edits:
        return AuditPlan.for_edits([Edit.load(path) for path in spec.edits], suite, spec.tier)
    return AuditPlan.for_concepts([concept.name for concept in spec.concepts], suite, spec.tier)


def configure_job(model: DiffusionModel, spec: JobSpec) -> tuple[Method, list[Any]]:
    """The method with its recipe, and the concepts with their sentences."""
    cls = load_class("erasure.methods", spec.method, Method)
    method, concepts, _ = configure_method(cls, list(spec.concepts), model.family, spec.fields)
    return method, concepts


def erase_concepts(model: DiffusionModel, folder: Path, spec: JobSpec) -> Edit:
    confirm(find_hints(model, spec.concepts))  # nobody is asked here; what is odd goes into the job's log
    method, concepts = configure_job(model, spec)
    write_claim(folder, "recording" if isinstance(method, Trained) else "solving", 0)
    preview = Preview(folder / "preview.png", [concepts[0].sentences()[-1][0], "", concepts[0].name])
    phases: list[str] = []

    def watch(running: Trained, play: TrainingContext) -> None:
        phase = "erasing" if running is method else "distilling"  # what SFD starts from
        if phases[-1:] != [phase]:
            phases.append(phase)
            write_claim(folder, phase, running.steps if phase == "erasing" else 0)
        preview(running, play)

    return erase(model, concepts, method, out=folder / "edit", seed=spec.seed, on_step=watch)


def run_audits(model: DiffusionModel, folder: Path, spec: JobSpec, edits: list[Edit]) -> list[str]:
    plans = AuditPlan.for_edits(edits, load_suite(spec.suite), spec.tier)
    write_claim(folder, "auditing", sum(2 * len(plan.samples) for plan in plans))
    folder_names = []
    for plan in plans:
        folder_name = f"audit-{plan.suite.name}-{plan.tier}" + (f"-{plan.axis}" if len(plans) > 1 else "")
        write_report(folder / folder_name, audit(model, edits, plan, folder / folder_name), plan.suite.gates)
        folder_names.append(folder_name)
    return folder_names
