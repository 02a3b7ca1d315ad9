"""Sequential erasure: do concepts stay erased after later requests, and how much of the rest is retained?

(Sequential unlearning: Zhang et al., arXiv:2402.11846, version 2.) After every request, an ordinary audit of all edits so far runs in its
own folder, so that an interrupted sequence continues and the base's images are shared. All figures here are counted from the rows of those
audits.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from erasure.edits import Edit, apply_edits
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.storage.locks import lock_folder
from erasure.storage.run import write_json
from eval.auditing.plan import AuditPlan
from eval.auditing.run import audit_plan
from eval.records.audit_result import AuditResult
from eval.records.axes import AXES, Axis
from eval.records.convert import to_record
from eval.records.models import BASE, ERASED, AuditedModel
from eval.records.rates import CountedRate
from eval.records.rows import SampleRow
from eval.records.sequence import (
    IntervalMethods,
    RateChange,
    Rebound,
    RequestRate,
    RetainedRates,
    SequenceBase,
    SequenceRequest,
    SequenceResult,
    SequenceSuite,
    TargetRates,
)
from eval.report.numbers import round_up
from eval.scoring.rates import EXACT, counted_rate
from eval.scoring.recount import load_sample_rows
from eval.stats.intervals import holm, mcnemar, paired_difference
from eval.suites.formats import PromptListSuite, Suite

INTERVAL_METHODS = IntervalMethods(rate=EXACT, change="Newcombe, paired", p="McNemar, exact", level=0.95)
ImageKey = tuple[str, str, int]  # style, object, index: one image, generated from the same noise in every audit


@dataclass(frozen=True)
class SequenceTarget:
    """A concept and the first request that erased it, counted from 1."""

    axis: Axis
    label: str
    request: int


@dataclass(frozen=True)
class SequenceStep:
    """The audits after a request: one for styles, one for objects, or both, depending on what was erased so far."""

    number: int
    folders: Mapping[Axis, Path]
    results: Mapping[Axis, AuditResult]
    rows: Mapping[Axis, Sequence[SampleRow]]


def audit_sequence(
    model: DiffusionModel, edits: Sequence[Edit], suite: Suite, tier: str, out: Path, *, fresh: bool = False
) -> SequenceResult:
    """Audit after every request, write out/sequence.json and return what it holds.

    The audits lie beside it in 1/, 2/, ... (or in 1/style, 1/object, ...).

    Args:
        edits: in the order of the requests; each made on the base or on earlier edits.

    Raises:
        UserError: the suite has no grid; there are fewer than two edits; an edit is duplicated or was made on an edit that does not come
            before it; `out` is a file; or anything that `audit_plan` raises.
        FolderLocked: another process is writing into `out`.
    """
    if isinstance(suite, PromptListSuite):
        raise UserError(f"suite {suite.name} has no grid, in which a sequence counts what is retained; choose one with styles and objects.")
    if len(edits) < 2:
        raise UserError(f"a sequence needs two edits or more, got {len(edits)}; `erasure audit EDIT` audits one.")
    digests = [edit.digest() for edit in edits]
    if repeated := [edit.name for i, edit in enumerate(edits) if edit.digest() in digests[:i]]:
        raise UserError(f"{repeated[0]} is duplicated in the sequence; name every edit once.")
    if out.is_file():
        raise UserError(f"{out} is a file; --out needs a folder.")
    targets = sequence_targets(edits, suite)
    for i in range(len(edits)):
        AuditPlan.for_edits(edits[: i + 1], suite, tier)  # raises for a later request before an earlier one is generated
    with apply_edits(model, edits):  # raises for an impossible order before anything is generated
        pass
    with lock_folder(out, "erasure audit sequence"):
        return _run_sequence(model, edits, suite, tier, out, targets, fresh)


def _run_sequence(
    model: DiffusionModel, edits: Sequence[Edit], suite: Suite, tier: str, out: Path, targets: Sequence[SequenceTarget], fresh: bool
) -> SequenceResult:
    """Do the work of `audit_sequence` in a folder that this process has locked."""
    steps = [audit_step(model, edits[: i + 1], suite, tier, out / str(i + 1), fresh) for i in range(len(edits))]
    target_rates, compute = erased_rates(steps, targets), str(model.compute_dtype).removeprefix("torch.")
    sequence = SequenceResult(
        suite=SequenceSuite(name=suite.name, file=suite.file or None, version=suite.version, tier=tier),
        base=SequenceBase(source=model.source, fingerprint=model.fingerprint(), compute=compute),
        methods=INTERVAL_METHODS,
        requests=tuple(request_record(edit, step_audits, out) for edit, step_audits in zip(edits, steps, strict=True)),
        targets=target_rates,
        retained=retained_rates(steps, targets, suite.excluded),
        rebounds=tuple(
            Rebound(label=target.label, axis=target.axis, request=after.request)
            for target in target_rates
            for after in target.after
            if after.change and after.change.rebound
        ),
    )
    write_json(out / "sequence.json", to_record(sequence))
    return sequence


def sequence_targets(edits: Sequence[Edit], suite: Suite) -> list[SequenceTarget]:
    """Return every concept of a sequence with the first request that erased it.

    Raises:
        UserError: the suite does not have a concept.
    """
    first_requests: dict[tuple[Axis, str], int] = {}
    for number, edit in enumerate(edits, 1):
        for concept in edit.info.concepts:
            first_requests.setdefault(suite.find_concept(concept["name"]), number)
    return [SequenceTarget(axis, label, number) for (axis, label), number in first_requests.items()]


def audit_step(model: DiffusionModel, edits: Sequence[Edit], suite: Suite, tier: str, folder: Path, fresh: bool) -> SequenceStep:
    """Audit all edits so far, once for each axis they erase on."""
    plans = AuditPlan.for_edits(edits, suite, tier)
    folders = {plan.axis: folder / plan.axis if len(plans) > 1 else folder for plan in plans}
    results = {plan.axis: audit_plan(model, edits, plan, folders[plan.axis], fresh=fresh) for plan in plans}
    return SequenceStep(len(edits), folders, results, {axis: load_sample_rows(audit_folder) for axis, audit_folder in folders.items()})


def request_record(edit: Edit, step: SequenceStep, out: Path) -> SequenceRequest:
    """Return what sequence.json says about a request, including what its audits lack."""
    results = step.results.values()
    return SequenceRequest(
        number=step.number,
        method=edit.info.method,
        concepts=tuple(concept["name"] for concept in edit.info.concepts),
        edit=edit.digest(),
        after=tuple(edit.after),
        audits=tuple(folder.relative_to(out).as_posix() for folder in step.folders.values()),
        missing={part: reason for result in results for part, reason in result.missing.items()},
        crashed={name: reason for result in results for name, reason in result.crashes.items()},
    )


def erased_rates(steps: Sequence[SequenceStep], targets: Sequence[SequenceTarget]) -> tuple[TargetRates, ...]:
    """Return UA of every target after its own request and every later one, with the change since its own.

    `rebound` is true if the whole interval of the change is below 0; `holm` is McNemar's p, adjusted over all changes of the sequence.
    """
    rates: list[TargetRates] = []
    for target in targets:
        own_step = steps[target.request - 1]
        own_outcomes = erased_outcomes(own_step.rows[target.axis], target, ERASED)
        after = []
        for later_step in steps[target.request - 1 :]:
            outcomes = erased_outcomes(later_step.rows[target.axis], target, ERASED)
            if outcomes:
                change = rate_change(outcomes, own_outcomes) if later_step is not own_step else None
                after.append(_request_rate(later_step, outcomes, change and replace(change, rebound=change.high < 0)))
        base_outcomes = erased_outcomes(own_step.rows[target.axis], target, BASE)
        base = outcome_rate(base_outcomes) if base_outcomes else None
        rates.append(TargetRates(axis=target.axis, label=target.label, request=target.request, base=base, after=tuple(after)))
    return _adjust_p(rates)


def _request_rate(step: SequenceStep, outcomes: Mapping[ImageKey, bool], change: RateChange | None) -> RequestRate:
    return RequestRate(request=step.number, change=change, **vars(outcome_rate(outcomes)))


def _adjust_p(targets: Sequence[TargetRates]) -> tuple[TargetRates, ...]:
    """Return the rates with McNemar's p adjusted over all their changes (Holm)."""
    adjusted = iter(holm([after.change.p for target in targets for after in target.after if after.change]))
    return tuple(
        replace(
            target,
            after=tuple(
                replace(after, change=replace(after.change, holm=next(adjusted))) if after.change else after for after in target.after
            ),
        )
        for target in targets
    )


def retained_rates(steps: Sequence[SequenceStep], targets: Sequence[SequenceTarget], excluded: Sequence[str]) -> tuple[RetainedRates, ...]:
    """Return after every request the share of images that are still read as prompted, among those that no request of the sequence erases.

    The images are the same after every request, so the rate falls only if something was lost. It is IRA on an axis with a target and CRA on
    one without.
    """
    rates: list[RetainedRates] = []
    for axis in AXES:
        first_rows = next(iter(steps[0].rows.values()))
        base_outcomes = retained_outcomes(first_rows, axis, targets, excluded, BASE)
        after = []
        for later_step in steps:
            outcomes = retained_outcomes(next(iter(later_step.rows.values())), axis, targets, excluded, ERASED)
            if outcomes:
                after.append(_request_rate(later_step, outcomes, rate_change(outcomes, base_outcomes)))
        if base_outcomes:
            has_target = axis in [target.axis for target in targets]
            base = outcome_rate(base_outcomes)
            rates.append(RetainedRates(axis=axis, rate="IRA" if has_target else "CRA", base=base, after=tuple(after)))
    return tuple(sorted(rates, key=lambda line: line.rate != "IRA"))


def erased_outcomes(rows: Sequence[SampleRow], target: SequenceTarget, model: AuditedModel) -> dict[ImageKey, bool]:
    """Return for each image that asks for the target whether the judge no longer reads it."""
    axis = target.axis
    target_rows = (row for row in grid_rows(rows, model) if row.prompted(axis) == target.label and row.is_judged(axis))
    return {image_key(row): not row.is_as_prompted(axis) for row in target_rows}


def retained_outcomes(
    rows: Sequence[SampleRow], axis: Axis, targets: Sequence[SequenceTarget], excluded: Sequence[str], model: AuditedModel
) -> dict[ImageKey, bool]:
    """Return for each image that asks for no target whether an axis is read as prompted."""
    target_labels = {(target.axis, target.label) for target in targets}
    retained_rows = (row for row in grid_rows(rows, model) if not target_labels & {(a, row.prompted(a)) for a in AXES})
    counted_rows = (row for row in retained_rows if row.prompted(axis) not in excluded and row.is_judged(axis))
    return {image_key(row): row.is_as_prompted(axis) for row in counted_rows}


def grid_rows(rows: Sequence[SampleRow], model: AuditedModel) -> Iterable[SampleRow]:
    """Yield the rows of one model's grid images."""
    return (row for row in rows if row.model == model and row.role == "grid")


def image_key(row: SampleRow) -> ImageKey:
    """Return what identifies an image across audits."""
    return row.style, row.object, row.index


def outcome_rate(outcomes: Mapping[ImageKey, bool]) -> CountedRate:
    """Return the rate of true outcomes (eval.scoring.rates.counted_rate)."""
    return counted_rate(sum(outcomes.values()), len(outcomes))


def rate_change(later: Mapping[ImageKey, bool], earlier: Mapping[ImageKey, bool]) -> RateChange | None:
    """Return the later minus the earlier rate over the images of both, with Newcombe's interval and McNemar's p; None without any.

    If a later request erases a label of the other axis, its images drop out of both sides.
    """
    table = [0, 0, 0, 0]
    for key in later.keys() & earlier.keys():
        table[2 * (not later[key]) + (not earlier[key])] += 1
    both, later_only, earlier_only, neither = table
    if not sum(table):
        return None
    estimate, low, high = paired_difference(*table)
    return RateChange(
        estimate=estimate,
        low=low,
        high=high,
        both=both,
        later_only=later_only,
        earlier_only=earlier_only,
        neither=neither,
        p=mcnemar(later_only, earlier_only),
    )


def missing_parts(sequence: SequenceResult) -> list[str]:
    """List what the requests asked for and the audits lack, in words."""
    failures = [
        f"after request {request.number}, {part}: {reason}"
        for request in sequence.requests
        for part, reason in {**request.missing, **request.crashed}.items()
    ]
    return failures or [
        f"{target.label} after request {request.number}: no image of it was counted"
        for target in sequence.targets
        for request in sequence.requests
        if request.number >= target.request and request.number not in [counted.request for counted in target.after]
    ]


def possible_rebounds(sequence: SequenceResult) -> list[str]:
    """List how much may have come back in spite of no shown rebound, by the interval of each change."""
    return [
        f"{target.label} after request {later.request}: no rebound is shown; up to {round_up(-100 * later.change.low):.1f} "
        "points of UA may have been lost since its own request (95% interval)"
        for target in sequence.targets
        for later in target.after
        if later.change and not later.change.rebound and later.change.low < 0
    ]
