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
from erasure.erasing import applied
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.storage.locks import held
from erasure.storage.run import write_json
from eval.audit import Audit, audit
from eval.report.numbers import up
from eval.scoring.counting import Row
from eval.scoring.judge_scores import AXES
from eval.scoring.rates import EXACT, counted_rate
from eval.scoring.recount import rows_of
from eval.stats.intervals import holm, mcnemar, paired_difference
from eval.suites.fine_grained import crossing
from eval.suites.suite import Axis, Suite

METHODS = {"rate": EXACT, "change": "Newcombe, paired", "p": "McNemar, exact", "level": 0.95}
Key = tuple[str, str, int]  # style, object, index: one picture, in every audit from the same noise


@dataclass(frozen=True)
class Target:
    """A concept and the first request that erased it, counted from 1."""

    axis: Axis
    label: str
    request: int


@dataclass(frozen=True)
class Step:
    """The audits after a request: one, or one for styles and one for objects where both were erased so far."""

    number: int
    folders: Mapping[Axis, Path]
    results: Mapping[Axis, dict[str, Any]]
    rows: Mapping[Axis, Sequence[Row]]


def sequence(model: DiffusionModel, edits: Sequence[Edit], suite: Suite, tier: str, out: Path, *, fresh: bool = False) -> dict[str, Any]:
    """Audit after every request and write out/sequence.json; returns what is in it.

    `out` ends with an audit in 1/, 2/, ... (or in 1/style, 1/object) beside it.

    Args:
        edits: in the order of the requests; each made on the base, or on some of those before it.

    Raises:
        UserError: fewer than two edits, one twice, one made on an edit that does not come before it, a suite without a grid, or anything
            an audit raises.
    """
    if suite.listed:
        raise UserError(f"suite {suite.name} has no grid, in which a sequence counts what is left; choose one with styles and objects.")
    if len(edits) < 2:
        raise UserError(f"a sequence needs two edits or more, got {len(edits)}; `erasure audit EDIT` audits one.")
    digests = [edit.digest() for edit in edits]
    if again := [edit.name for i, edit in enumerate(edits) if edit.digest() in digests[:i]]:
        raise UserError(f"{again[0]} is twice in the sequence; name every edit once.")
    if out.is_file():
        raise UserError(f"{out} is a file; --out needs a folder.")
    targets = targets_of(edits, suite)
    for i in range(len(edits)):
        Audit.of(edits[: i + 1], suite, tier)  # complains about a later request before an earlier one is drawn
    with applied(model, edits):  # complains about an order that does not work before anything is drawn
        pass
    with held(out, "erasure audit sequence"):
        return _sequence(model, edits, suite, tier, out, targets, fresh)


def _sequence(
    model: DiffusionModel, edits: Sequence[Edit], suite: Suite, tier: str, out: Path, targets: Sequence[Target], fresh: bool
) -> dict[str, Any]:
    """The work of `sequence`, in a folder that is this process's own."""
    steps = [step(model, edits[: i + 1], suite, tier, out / str(i + 1), fresh) for i in range(len(edits))]
    found: dict[str, Any] = {
        "task": "sequence",
        "suite": {"name": suite.name, "file": suite.file or None, "version": suite.version, "tier": tier},
        "base": {"source": model.source, "fingerprint": model.fingerprint(), "compute": str(model.compute).removeprefix("torch.")},
        "methods": METHODS,
        "requests": [request_record(edit, at, out) for edit, at in zip(edits, steps, strict=True)],
        "targets": erased_after(steps, targets),
        "kept": kept_after(steps, targets, suite.apart),
    }
    found["rebounds"] = [
        {"label": target["label"], "axis": target["axis"], "request": after["request"]}
        for target in found["targets"]
        for after in target["after"]
        if after["change"] and after["change"]["rebound"]
    ]
    write_json(out / "sequence.json", found)
    return found


def targets_of(edits: Sequence[Edit], suite: Suite) -> list[Target]:
    """Every concept of a sequence, by the first request that erased it.

    Raises:
        UserError: a concept the suite does not have.
    """
    found: dict[tuple[Axis, str], int] = {}
    for number, edit in enumerate(edits, 1):
        for concept in edit.info.concepts:
            found.setdefault(suite.find(concept["name"]), number)
    return [Target(axis, label, number) for (axis, label), number in found.items()]


def step(model: DiffusionModel, edits: Sequence[Edit], suite: Suite, tier: str, folder: Path, fresh: bool) -> Step:
    """The audits of all edits so far."""
    plans = Audit.of(edits, suite, tier)
    folders = {plan.axis: folder / plan.axis if len(plans) > 1 else folder for plan in plans}
    results = {plan.axis: audit(model, edits, plan, folders[plan.axis], fresh=fresh) for plan in plans}
    return Step(len(edits), folders, results, {axis: rows_of(place) for axis, place in folders.items()})


def request_record(edit: Edit, at: Step, out: Path) -> dict[str, Any]:
    """A request, and what of its audits is missing."""
    return {
        "number": at.number,
        "method": edit.info.method,
        "concepts": [concept["name"] for concept in edit.info.concepts],
        "edit": edit.digest(),
        "after": edit.after,
        "audits": [folder.relative_to(out).as_posix() for folder in at.folders.values()],
        "missing": {part: why for result in at.results.values() for part, why in result["missing"].items()},
        "crashed": {a["name"]: a["crashed"] for result in at.results.values() for a in result["attacks"] if "crashed" in a},
    }


def erased_after(steps: Sequence[Step], targets: Sequence[Target]) -> list[dict[str, Any]]:
    """UA of every target after its own request and every later one, and how it changed since its own."""
    found: list[dict[str, Any]] = []
    for target in targets:
        first = steps[target.request - 1]
        begun = gone(first.rows[target.axis], target, "erased")
        after = []
        for at in steps[target.request - 1 :]:
            now = gone(at.rows[target.axis], target, "erased")
            if now:
                change = changed(now, begun) if at is not first else None
                after.append({"request": at.number, **rate(now), "change": change and {**change, "rebound": change["high"] < 0}})
        base = gone(first.rows[target.axis], target, "base")
        about = {"axis": target.axis, "label": target.label, "request": target.request}
        found.append({**about, "base": rate(base) if base else None, "after": after})
    changes = [after["change"] for target in found for after in target["after"] if after["change"]]
    for change, p in zip(changes, holm([change["p"] for change in changes]), strict=True):
        change["holm"] = p
    return found


def kept_after(steps: Sequence[Step], targets: Sequence[Target], apart: Sequence[str]) -> list[dict[str, Any]]:
    """How much of what no request of the whole sequence asks to erase is still read as asked, after every request.

    These are the same pictures after every request, so that a line of them falls only where something was lost. On an axis with a target it
    is IRA, on one without CRA.
    """
    found = []
    for axis in AXES:
        first = next(iter(steps[0].rows.values()))
        base = kept(first, axis, targets, apart, "base")
        after = []
        for at in steps:
            now = kept(next(iter(at.rows.values())), axis, targets, apart, "erased")
            if now:
                after.append({"request": at.number, **rate(now), "change": changed(now, base)})
        name = "IRA" if axis in [target.axis for target in targets] else "CRA"
        if base:
            found.append({"axis": axis, "rate": name, "base": rate(base), "after": after})
    return sorted(found, key=lambda line: line["rate"] != "IRA")


def gone(rows: Sequence[Row], target: Target, model: str) -> dict[Key, bool]:
    """Whether the judge no longer reads a target in the pictures that ask for it by name."""
    axis = target.axis
    mine = (r for r in grid(rows, model) if r[axis] == target.label and axis in r["read"])
    return {key(r): r["read"][axis]["label"] != target.label for r in mine}


def kept(rows: Sequence[Row], axis: Axis, targets: Sequence[Target], apart: Sequence[str], model: str) -> dict[Key, bool]:
    """Whether an axis is read as asked in the pictures that ask for no target."""
    asked = {(target.axis, target.label) for target in targets}
    stays = (r for r in grid(rows, model) if not asked & {(a, r[a]) for a in (axis, crossing(axis))})
    return {key(r): r["read"][axis]["label"] == r[axis] for r in stays if r[axis] not in apart and axis in r["read"]}


def grid(rows: Sequence[Row], model: str) -> Iterable[Row]:
    return (row for row in rows if row["model"] == model and row["role"] == "grid")


def key(row: Row) -> Key:
    return row["style"], row["object"], row["index"]


def rate(outcomes: Mapping[Key, bool]) -> dict[str, Any]:
    return counted_rate(sum(outcomes.values()), len(outcomes))


def changed(later: Mapping[Key, bool], earlier: Mapping[Key, bool]) -> dict[str, Any] | None:
    """Later minus earlier rate over the pictures that both have, with Newcombe's interval and McNemar's p; None where there are none.

    A later request that erases a label of the other axis takes its pictures out of both sides.
    """
    table = [0, 0, 0, 0]
    for at in later.keys() & earlier.keys():
        table[2 * (not later[at]) + (not earlier[at])] += 1
    both, later_only, earlier_only, neither = table
    if not sum(table):
        return None
    cells = {"both": both, "later_only": later_only, "earlier_only": earlier_only, "neither": neither}
    return {**paired_difference(*table)._asdict(), **cells, "p": mcnemar(later_only, earlier_only)}


def incomplete(found: Mapping[str, Any]) -> list[str]:
    """What was asked for and is not there, in sentences."""
    gaps = [
        f"after request {request['number']}, {part}: {why}"
        for request in found["requests"]
        for part, why in {**request["missing"], **request["crashed"]}.items()
    ]
    return gaps or [
        f"{target['label']} after request {number['number']}: no picture of it was counted"
        for target in found["targets"]
        for number in found["requests"]
        if number["number"] >= target["request"] and number["number"] not in [at["request"] for at in target["after"]]
    ]


def possible(found: Mapping[str, Any]) -> list[str]:
    """Of every change that is no rebound: how much may have come back all the same, by its interval."""
    return [
        f"{target['label']} after request {at['request']}: no rebound is shown; up to {up(-100 * at['change']['low']):.1f} points "
        "of UA may have been lost since its own request (95 % interval)"
        for target in found["targets"]
        for at in target["after"]
        if at["change"] and not at["change"]["rebound"] and at["change"]["low"] < 0
    ]
