"""The work of a job: erase, then audit; in a process of its own, or stage by stage in the workers of a fleet."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.confirmation import confirm
from app.jobs.plan import JobSpec
from app.jobs.queue import JobState, read_progress, write_claim
from app.jobs.shared_audit import count_processes, generate_together
from erasure import prompt_templates
from erasure.concept import Concept
from erasure.concept_hints import find_hints
from erasure.config.registry import load_class
from erasure.edits import Edit, check_distinct
from erasure.erasing import prepare
from erasure.errors import Unfinished, UserError
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.loading.model_source import SHIPPED_MODELS
from erasure.methods.base import Method, Trained, TrainingContext, exclude_concepts
from erasure.pocket import prompts as pocket_prompts
from erasure.recipes import configure_method
from erasure.storage.files import is_disk_full, write_checksummed_json
from erasure.storage.locks import Shard, lock_folder
from erasure.training.preview import Preview
from eval.auditing.plan import AuditPlan
from eval.auditing.prepare import prepare_audit
from eval.auditing.run import generate_and_attack, run_audit
from eval.report.html import write_report
from eval.scoring.judge_scores import check_judges_fit
from eval.suites.suite import load_suite


@dataclass(frozen=True)
class Runner:
    """What a process that runs jobs brings along."""

    load: Callable[[str], DiffusionModel] = load_model  # from a model's source; a worker of a fleet keeps its last model
    command: str = "erasure jobs"  # the name under which it locks a job's folder
    uses_all_cores: bool = True  # no other job runs on this machine meanwhile


ALONE = Runner()  # a process for one job


def run_job(folder: Path, spec: JobSpec, runner: Runner = ALONE, seconds_before: float = 0.0) -> None:
    """Run or resume the job in a folder. Errors are written to error.json and raised.

    Args:
        runner: of this process.
        seconds_before: what earlier stages of the job took; they count in done.json.

    Raises:
        FolderLocked: Another process works on the job.
        Unfinished: The job was cancelled before it began. There is no error.json, and the same command continues.
    """
    with lock_folder(folder, runner.command):
        if check_stage(folder) == "done":
            return
        start = time.monotonic()
        with record_errors(folder):
            model = begin_stage(folder, spec, runner)
            edits = load_edits_of(spec) or [erase_concepts(model, folder, spec)]
            audits = run_audits(model, folder, spec, edits, runner) if spec.suite else []
        seconds = round(seconds_before + time.monotonic() - start, 1)
        write_checksummed_json(folder / "done.json", {"edits": [edit.digest() for edit in edits], "audits": audits, "seconds": seconds})
        (folder / "claim.json").unlink(missing_ok=True)


def run_erasure(folder: Path, spec: JobSpec, runner: Runner) -> None:
    """Run the erasure of a job alone; afterwards the job waits for its audits. Raises as `run_job`."""
    with lock_folder(folder, runner.command):
        if check_stage(folder) == "done":
            return
        with record_errors(folder):
            model = begin_stage(folder, spec, runner)
            if not load_edits_of(spec):
                erase_concepts(model, folder, spec)
        (folder / "claim.json").unlink(missing_ok=True)


def run_audit_shard(folder: Path, spec: JobSpec, shard: Shard, runner: Runner) -> None:
    """Generate and attack one shard of a job's audits, after its erasure; `run_job` then finds the images made. Raises as `run_job`."""
    with lock_folder(folder, runner.command, shard):
        if check_stage(folder) == "done":
            return
        with record_errors(folder):
            model = begin_stage(folder, spec, runner)
            edits = load_edits_of(spec) or [Edit.load(folder / "edit")]
            plans = AuditPlan.for_edits(edits, load_suite(spec.suite), spec.tier)
            write_claim(folder, "auditing", image_count(plans))
            for plan, out in zip(plans, audit_folders(folder, plans), strict=True):
                generate_and_attack(prepare_audit(model, edits, plan, out), shard)


def check_stage(folder: Path) -> JobState:
    """Return the state of a job that this process has locked.

    Raises:
        Unfinished: The job was cancelled.
    """
    state = read_progress(folder).state
    if state == "cancelled":
        raise Unfinished(f"{folder.name} was cancelled before it began; `jobs run --retry` or the page's Continue runs it again.")
    return state


def begin_stage(folder: Path, spec: JobSpec, runner: Runner) -> DiffusionModel:
    """Load the model, and plan the audits, so that a wrong suite, tier or model fails before the erasure."""
    write_claim(folder, "starting", 0)
    model = runner.load(spec.model)
    plan_audits(model, spec)
    return model


@contextmanager
def record_errors(folder: Path) -> Iterator[None]:
    """Write the error that ends a job into its folder, unless the same command would continue."""
    try:
        yield
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


def load_edits_of(spec: JobSpec) -> list[Edit]:
    """Return the edits that a job audits instead of erasing; empty for an erasure."""
    return list(check_distinct([Edit.load(path) for path in spec.edits]))


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


def configure_job(model: DiffusionModel, spec: JobSpec) -> tuple[Method, list[Concept]]:
    """Return the method with its recipe, and the concepts with their prompts."""
    cls = load_class("erasure.methods", spec.method, Method)
    method, concepts, _ = configure_method(cls, list(spec.concepts), model.family, spec.fields)
    return method, concepts


def erase_concepts(model: DiffusionModel, folder: Path, spec: JobSpec) -> Edit:
    confirm(find_hints(model, spec.concepts))  # without a terminal nobody is asked; the hints go into the job's log
    method, concepts = configure_job(model, spec)
    write_claim(folder, "caching" if isinstance(method, Trained) else "solving", 0)
    preview = Preview(folder / "preview.png", [concepts[0].prompt_pairs()[-1][0], concepts[0].name, retained_prompt(model, concepts)])
    phases: list[str] = []

    def on_step(running: Trained, context: TrainingContext) -> None:
        phase = "erasing" if running is method else "distilling"  # SFD starts from a distilled generator
        if phases[-1:] != [phase]:
            phases.append(phase)
            write_claim(folder, phase, running.steps if phase == "erasing" else 0)
        preview(running, context)

    return prepare(model, concepts, method, out=folder / "edit", seed=spec.seed).run(watch=on_step)


def retained_prompt(model: DiffusionModel, concepts: list[Concept]) -> str:
    """Return a prompt for something that should stay; the empty one if every prompt names what is erased."""
    prompts = pocket_prompts.RETAIN if model.source in SHIPPED_MODELS else prompt_templates.RETAIN
    return next(iter(exclude_concepts(prompts, concepts)), "")


def run_audits(model: DiffusionModel, folder: Path, spec: JobSpec, edits: list[Edit], runner: Runner) -> list[str]:
    """Audit, and return the names of the audits' folders."""
    plans = AuditPlan.for_edits(edits, load_suite(spec.suite), spec.tier)
    write_claim(folder, "auditing", image_count(plans))
    folders = audit_folders(folder, plans)
    for plan, out in zip(plans, folders, strict=True):
        prepared = prepare_audit(model, edits, plan, out)
        # several axes have folders of their own, which the command line would name otherwise
        if len(plans) == 1 and runner.uses_all_cores and (count := count_processes(model, plan)) > 1:
            generate_together(prepared, [Path(edit) for edit in spec.edits] or [folder / "edit"], spec.suite, count)
        write_report(out, run_audit(prepared), plan.suite.gates)
    return [out.name for out in folders]


def image_count(plans: list[AuditPlan]) -> int:
    """Return how many images the base and the edited model generate together."""
    return sum(2 * len(plan.samples) for plan in plans)


def audit_folders(folder: Path, plans: list[AuditPlan]) -> list[Path]:
    """Return the folder of every audit of a job."""
    return [folder / (f"audit-{plan.suite.name}-{plan.tier}" + (f"-{plan.axis}" if len(plans) > 1 else "")) for plan in plans]
