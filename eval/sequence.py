"""Requests one after another: is what the earlier ones erased still gone after the later ones, and what is left of the rest?

(Sequential unlearning: Zhang et al., arXiv:2402.11846, version 2.) After every request there is an ordinary audit of all edits so far, in a
folder of its own, so that an interrupted sequence continues and the base's pictures are shared. What is said here is counted from their
rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasure.edits import Edit
from erasure.erasing import apply_edits
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.storage.locks import lock_folder
from erasure.storage.run import write_json
from eval.audit import AuditPlan, audit
from eval.report.numbers import round_up
from eval.scoring.counting import SampleRow
from eval.scoring.judge_scores import AXES
from eval.scoring.rates import EXACT, counted_rate
from eval.scoring.recount import load_sample_rows
from eval.stats.intervals import holm, mcnemar, paired_difference
from eval.suites.fine_grained import cross_axis
from eval.suites.suite import Axis, Suite

INTERVAL_METHODS = {"rate": EXACT, "change": "Newcombe, paired", "p": "McNemar, exact", "level": 0.95}
ImageKey = tuple[str, str, int]  # style, object, index: one picture, in every audit from the same noise


@dataclass(frozen=True)
class SequenceTarget:
    """A concept and the first request that erased it, counted from 1."""

    axis: Axis
    label: str
    request: int


@dataclass(frozen=True)
class SequenceStep:
    """The audits after a request: one, or one for styles and one for objects where both were erased so far."""

    number: int
    folders: Mapping[Axis, Path]
    results: Mapping[Axis, dict[str, Any]]
    rows: Mapping[Axis, Sequence[SampleRow]]


def audit_sequence(
    model: DiffusionModel, edits: Sequence[Edit], suite: Suite, tier: str, out: Path, *, fresh: bool = False
) -> dict[str, Any]:
    """Audit after every request and write out/sequence.json; returns what is in it.

    `out` ends with an audit in 1/, 2/, ... (or in 1/style, 1/object) beside it.

    Args:
        edits: in the order of the requests; each made on the base, or on some of those before it.

    Raises:
        UserError: fewer than two edits, one twice, one made on an edit that does not come before it, a suite without a grid, or anything
            an audit raises.
    """
    if suite.prompt_list:
        raise UserError(f"suite {suite.name} has no grid, in which a sequence counts what is left; choose one with styles and objects.")
    if len(edits) < 2:
        raise UserError(f"a sequence needs two edits or more, got {len(edits)}; `erasure audit EDIT` audits one.")
    digests = [edit.digest() for edit in edits]
    if repeated := [edit.name for i, edit in enumerate(edits) if edit.digest() in digests[:i]]:
        raise UserError(f"{repeated[0]} is twice in the sequence; name every edit once.")
    if out.is_file():
        raise UserError(f"{out} is a file; --out needs a folder.")
    targets = sequence_targets(edits, suite)
    for i in range(len(edits)):
        AuditPlan.for_edits(edits[: i + 1], suite, tier)  # complains about a later request before an earlier one is drawn
    with apply_edits(model, edits):  # complains about an order that does not work before anything is drawn
        pass
    with lock_folder(out, "erasure audit sequence"):
        return _run_sequence(model, edits, suite, tier, out, targets, fresh)


def _run_sequence(
    model: DiffusionModel, edits: Sequence[Edit], suite: Suite, tier: str, out: Path, targets: Sequence[SequenceTarget], fresh: bool
) -> dict[str, Any]:
    """The work of `sequence`, in a folder that is this process's own."""
    steps = [audit_step(model, edits[: i + 1], suite, tier, out / str(i + 1), fresh) for i in range(len(edits))]
    record: dict[str, Any] = {
        "task": "sequence",
        "suite": {"name": suite.name, "file": suite.file or None, "version": suite.version, "tier": tier},
        "base": {"source": model.source, "fingerprint": model.fingerprint(), "compute": str(model.compute_dtype).removeprefix("torch.")},
        "methods": INTERVAL_METHODS,
        "requests": [request_record(edit, step_audits, out) for edit, step_audits in zip(edits, steps, strict=True)],
        "targets": erased_rates(steps, targets),
        "kept": retained_rates(steps, targets, suite.excluded),
    }
    record["rebounds"] = [
        {"label": target["label"], "axis": target["axis"], "request": after["request"]}
        for target in record["targets"]
        for after in target["after"]
        if after["change"] and after["change"]["rebound"]
    ]
    write_json(out / "sequence.json", record)
    return record


def sequence_targets(edits: Sequence[Edit], suite: Suite) -> list[SequenceTarget]:
    """Every concept of a sequence, by the first request that erased it.

    Raises:
        UserError: a concept the suite does not have.
    """
    first_requests: dict[tuple[Axis, str], int] = {}
    for number, edit in enumerate(edits, 1):
        for concept in edit.info.concepts:
            first_requests.setdefault(suite.find_concept(concept["name"]), number)
    return [SequenceTarget(axis, label, number) for (axis, label), number in first_requests.items()]


def audit_step(model: DiffusionModel, edits: Sequence[Edit], suite: Suite, tier: str, folder: Path, fresh: bool) -> SequenceStep:
    """The audits of all edits so far."""
    plans = AuditPlan.for_edits(edits, suite, tier)
    folders = {plan.axis: folder / plan.axis if len(plans) > 1 else folder for plan in plans}
    results = {plan.axis: audit(model, edits, plan, folders[plan.axis], fresh=fresh) for plan in plans}
    return SequenceStep(len(edits), folders, results, {axis: load_sample_rows(audit_folder) for axis, audit_folder in folders.items()})


def request_record(edit: Edit, step: SequenceStep, out: Path) -> dict[str, Any]:
    """A request, and what of its audits is missing."""
    return {
        "number": step.number,
        "method": edit.info.method,
        "concepts": [concept["name"] for concept in edit.info.concepts],
        "edit": edit.digest(),
        "after": edit.after,
        "audits": [folder.relative_to(out).as_posix() for folder in step.folders.values()],
        "missing": {part: reason for result in step.results.values() for part, reason in result["missing"].items()},
        "crashed": {a["name"]: a["crashed"] for result in step.results.values() for a in result["attacks"] if "crashed" in a},
    }


def erased_rates(steps: Sequence[SequenceStep], targets: Sequence[SequenceTarget]) -> list[dict[str, Any]]:
    """UA of every target after its own request and every later one, and how it changed since its own."""
    records: list[dict[str, Any]] = []
    for target in targets:
        own_step = steps[target.request - 1]
        own_outcomes = erased_outcomes(own_step.rows[target.axis], target, "erased")
        after = []
        for later_step in steps[target.request - 1 :]:
            outcomes = erased_outcomes(later_step.rows[target.axis], target, "erased")
            if outcomes:
                change = rate_change(outcomes, own_outcomes) if later_step is not own_step else None
                after.append(
                    {"request": later_step.number, **outcome_rate(outcomes), "change": change and {**change, "rebound": change["high"] < 0}}
                )
        base_outcomes = erased_outcomes(own_step.rows[target.axis], target, "base")
        identity = {"axis": target.axis, "label": target.label, "request": target.request}
        records.append({**identity, "base": outcome_rate(base_outcomes) if base_outcomes else None, "after": after})
    changes = [after["change"] for target in records for after in target["after"] if after["change"]]
    for change, p in zip(changes, holm([change["p"] for change in changes]), strict=True):
        change["holm"] = p
    return records


def retained_rates(steps: Sequence[SequenceStep], targets: Sequence[SequenceTarget], excluded: Sequence[str]) -> list[dict[str, Any]]:
    """How much of what no request of the whole sequence asks to erase is still read as asked, after every request.

    These are the same pictures after every request, so that a line of them falls only where something was lost. On an axis with a target it
    is IRA, on one without CRA.
    """
    records = []
    for axis in AXES:
        first_rows = next(iter(steps[0].rows.values()))
        base_outcomes = retained_outcomes(first_rows, axis, targets, excluded, "base")
        after = []
        for later_step in steps:
            outcomes = retained_outcomes(next(iter(later_step.rows.values())), axis, targets, excluded, "erased")
            if outcomes:
                after.append({"request": later_step.number, **outcome_rate(outcomes), "change": rate_change(outcomes, base_outcomes)})
        rate_name = "IRA" if axis in [target.axis for target in targets] else "CRA"
        if base_outcomes:
            records.append({"axis": axis, "rate": rate_name, "base": outcome_rate(base_outcomes), "after": after})
    return sorted(records, key=lambda line: line["rate"] != "IRA")


def erased_outcomes(rows: Sequence[SampleRow], target: SequenceTarget, model: str) -> dict[ImageKey, bool]:
    """Whether the judge no longer reads a target in the pictures that ask for it by name."""
    axis = target.axis
    target_rows = (r for r in grid_rows(rows, model) if r[axis] == target.label and axis in r["read"])
    return {image_key(r): r["read"][axis]["label"] != target.label for r in target_rows}


def retained_outcomes(
    rows: Sequence[SampleRow], axis: Axis, targets: Sequence[SequenceTarget], excluded: Sequence[str], model: str
) -> dict[ImageKey, bool]:
    """Whether an axis is read as asked in the pictures that ask for no target."""
    target_labels = {(target.axis, target.label) for target in targets}
    retained_rows = (r for r in grid_rows(rows, model) if not target_labels & {(a, r[a]) for a in (axis, cross_axis(axis))})
    return {image_key(r): r["read"][axis]["label"] == r[axis] for r in retained_rows if r[axis] not in excluded and axis in r["read"]}


def grid_rows(rows: Sequence[SampleRow], model: str) -> Iterable[SampleRow]:
    return (row for row in rows if row["model"] == model and row["role"] == "grid")


def image_key(row: SampleRow) -> ImageKey:
    return row["style"], row["object"], row["index"]


def outcome_rate(outcomes: Mapping[ImageKey, bool]) -> dict[str, Any]:
    return counted_rate(sum(outcomes.values()), len(outcomes))


def rate_change(later: Mapping[ImageKey, bool], earlier: Mapping[ImageKey, bool]) -> dict[str, Any] | None:
    """Later minus earlier rate over the pictures that both have, with Newcombe's interval and McNemar's p; None where there are none.

    A later request that erases a label of the other axis takes its pictures out of both sides.
    """
    table = [0, 0, 0, 0]
    for key in later.keys() & earlier.keys():
        table[2 * (not later[key]) + (not earlier[key])] += 1
    both, later_only, earlier_only, neither = table
    if not sum(table):
        return None
    cells = {"both": both, "later_only": later_only, "earlier_only": earlier_only, "neither": neither}
    return {**paired_difference(*table)._asdict(), **cells, "p": mcnemar(later_only, earlier_only)}


def missing_parts(record: Mapping[str, Any]) -> list[str]:
    """What was asked for and is not there, in sentences."""
    failures = [
        f"after request {request['number']}, {part}: {reason}"
        for request in record["requests"]
        for part, reason in {**request["missing"], **request["crashed"]}.items()
    ]
    return failures or [
        f"{target['label']} after request {other_request['number']}: no picture of it was counted"
        for target in record["targets"]
        for other_request in record["requests"]
        if other_request["number"] >= target["request"]
        and other_request["number"] not in [counted["request"] for counted in target["after"]]
    ]


def possible_rebounds(record: Mapping[str, Any]) -> list[str]:
    """Of every change that is no rebound: how much may have come back all the same, by its interval."""
    return [
        f"{target['label']} after request {later['request']}: no rebound is shown; up to {round_up(-100 * later['change']['low']):.1f} points "
        "of UA may have been lost since its own request (95 % interval)"
        for target in record["targets"]
        for later in target["after"]
        if later["change"] and not later["change"]["rebound"] and later["change"]["low"] < 0
    ]
