"""The work of a job's own process: erase, then audit."""

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
from erasure.erasing import prepare
from erasure.errors import Unfinished, UserError
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.methods.base import Method, Trained, TrainingContext
from erasure.recipes import configure_method
from erasure.storage.files import is_disk_full, write_checksummed_json
from erasure.storage.locks import lock_folder
from erasure.training.preview import Preview
from eval.auditing.plan import AuditPlan
from eval.auditing.run import audit_plan
from eval.report.html import write_report
from eval.scoring.judge_scores import check_judges_fit
from eval.suites.suite import load_suite


def run_job(folder: Path, spec: JobSpec) -> None:
    """Run or resume the job in a folder. Errors are written to error.json and raised.

    Raises:
        FolderLocked: Another process works on the job.
        Unfinished: The job was cancelled before it began. There is no error.json, and the same command continues.
    """
    with lock_folder(folder, "erasure jobs"):
        state = read_progress(folder).state
        if state == "cancelled":
            raise Unfinished(f"{folder.name} was cancelled before it began; `jobs run --retry` or the page's Continue runs it again.")
        if state != "done":
            _run_job(folder, spec)


def _run_job(folder: Path, spec: JobSpec) -> None:
    """Run the job in a folder that this process has locked."""
    start = time.monotonic()
    try:
        write_claim(folder, "starting", 0)
        model = load_model(spec.model)
        plan_audits(model, spec)  # a wrong suite, tier or model fails before the erasure
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
    """Plan the audits of a job before anything is erased; empty where the job names no suite.

    Raises:
        UserError: The suite or tier does not exist, the suite lacks a concept, or its judges do not fit this model's images.
    """
    if not spec.suite:
        return []
    suite = load_suite(spec.suite)
    check_judges_fit(model, suite)
    if spec.edits:
        return AuditPlan.for_edits([Edit.load(path) for path in spec.edits], suite, spec.tier)
    return AuditPlan.for_concepts([concept.name for concept in spec.concepts], suite, spec.tier)


def configure_job(model: DiffusionModel, spec: JobSpec) -> tuple[Method, list[Any]]:
    """Return the method with its recipe, and the concepts with their prompts."""
    cls = load_class("erasure.methods", spec.method, Method)
    method, concepts, _ = configure_method(cls, list(spec.concepts), model.family, spec.fields)
    return method, concepts


def erase_concepts(model: DiffusionModel, folder: Path, spec: JobSpec) -> Edit:
    confirm(find_hints(model, spec.concepts))  # without a terminal nobody is asked; the hints go into the job's log
    method, concepts = configure_job(model, spec)
    write_claim(folder, "caching" if isinstance(method, Trained) else "solving", 0)
    preview = Preview(folder / "preview.png", [concepts[0].prompt_pairs()[-1][0], "", concepts[0].name])
    phases: list[str] = []

    def on_step(running: Trained, context: TrainingContext) -> None:
        phase = "erasing" if running is method else "distilling"  # SFD starts from a distilled generator
        if phases[-1:] != [phase]:
            phases.append(phase)
            write_claim(folder, phase, running.steps if phase == "erasing" else 0)
        preview(running, context)

    return prepare(model, concepts, method, out=folder / "edit", seed=spec.seed).run(watch=on_step)


def run_audits(model: DiffusionModel, folder: Path, spec: JobSpec, edits: list[Edit]) -> list[str]:
    plans = AuditPlan.for_edits(edits, load_suite(spec.suite), spec.tier)
    write_claim(folder, "auditing", sum(2 * len(plan.samples) for plan in plans))
    folder_names = []
    for plan in plans:
        folder_name = f"audit-{plan.suite.name}-{plan.tier}" + (f"-{plan.axis}" if len(plans) > 1 else "")
        write_report(folder / folder_name, audit_plan(model, edits, plan, folder / folder_name), plan.suite.gates)
        folder_names.append(folder_name)
    return folder_names
