"""What a job's own process does: erase, then audit."""

import time
import traceback
from pathlib import Path
from typing import Any

from app.confirmation import settled
from app.jobs.plan import Spec
from app.jobs.queue import claim, progress
from erasure.concept_hints import doubts
from erasure.config.registry import load
from erasure.edits import Edit, distinct
from erasure.erasing import configure, erase
from erasure.errors import Unfinished, UserError
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.methods.base import Method, Play, Trained
from erasure.storage.files import disk_full, write_sealed
from erasure.storage.locks import held
from erasure.training.preview import Preview
from eval.audit import Audit, audit
from eval.report.html import write
from eval.scoring.judge_scores import readable
from eval.suites.suite import load_suite


def work(folder: Path, spec: Spec) -> None:
    """Do the job in a folder, from wherever it stands; errors are left in error.json and raised.

    Raises:
        Busy: another process works on it.
        Unfinished: it was cancelled, or the disk is full; then there is no error.json, and the same command continues.
    """
    with held(folder, "erasure jobs"):
        state = progress(folder).state
        if state == "cancelled":
            raise Unfinished(f"{folder.name} was cancelled before it began; `jobs run --retry` or the page's Continue runs it again.")
        if state != "done":
            _work(folder, spec)


def _work(folder: Path, spec: Spec) -> None:
    """The work of `work`, in a folder that is this process's own."""
    begun = time.monotonic()
    try:
        claim(folder, "starting", 0)
        model = load_model(spec.model)
        planned(model, spec)  # a wrong suite, tier or model costs no erasure
        edits = list(distinct([Edit.load(path) for path in spec.edits])) or [erased(model, folder, spec)]
        audits = audited(model, folder, spec, edits) if spec.suite else []
    except Unfinished:
        raise
    except Exception as error:
        if disk_full(error):
            raise
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        write_sealed(folder / "error.json", {"error": said, "trace": "" if isinstance(error, UserError) else traceback.format_exc()})
        raise
    seconds = round(time.monotonic() - begun, 1)
    write_sealed(folder / "done.json", {"edits": [edit.digest() for edit in edits], "audits": audits, "seconds": seconds})
    (folder / "claim.json").unlink(missing_ok=True)


def planned(model: DiffusionModel, spec: Spec) -> list[Audit]:
    """The audits that a job ends with, before anything is erased; none where it names no suite.

    Raises:
        UserError: no such suite or tier, a suite without the concepts, or one whose judges cannot read this model's pictures.
    """
    if not spec.suite:
        return []
    suite = load_suite(spec.suite)
    readable(model, suite)
    if spec.edits:
        return Audit.of([Edit.load(path) for path in spec.edits], suite, spec.tier)
    return Audit.about([concept.name for concept in spec.concepts], suite, spec.tier)


def prepared(model: DiffusionModel, spec: Spec) -> tuple[Method, list[Any]]:
    """The method with its recipe, and the concepts with their sentences."""
    cls = load("erasure.methods", spec.method, Method)
    method, concepts, _ = configure(cls, list(spec.concepts), model.family, spec.fields)
    return method, concepts


def erased(model: DiffusionModel, folder: Path, spec: Spec) -> Edit:
    settled(doubts(model, spec.concepts))  # nobody is asked here; what is odd goes into the job's log
    method, concepts = prepared(model, spec)
    claim(folder, "recording" if isinstance(method, Trained) else "solving", 0)
    preview = Preview(folder / "preview.png", [concepts[0].sentences()[-1][0], "", concepts[0].name])
    phases: list[str] = []

    def watch(running: Trained, play: Play) -> None:
        phase = "erasing" if running is method else "distilling"  # what SFD starts from
        if phases[-1:] != [phase]:
            phases.append(phase)
            claim(folder, phase, running.steps if phase == "erasing" else 0)
        preview(running, play)

    return erase(model, concepts, method, out=folder / "edit", seed=spec.seed, watch=watch)


def audited(model: DiffusionModel, folder: Path, spec: Spec, edits: list[Edit]) -> list[str]:
    plans = Audit.of(edits, load_suite(spec.suite), spec.tier)
    claim(folder, "auditing", sum(2 * len(plan.todo) for plan in plans))
    names = []
    for plan in plans:
        name = f"audit-{plan.suite.name}-{plan.tier}" + (f"-{plan.axis}" if len(plans) > 1 else "")
        write(folder / name, audit(model, edits, plan, folder / name), plan.suite.gates)
        names.append(name)
    return names
