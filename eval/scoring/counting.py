"""rows -> rates: what an audit's readings amount to. Every function takes rows of samples.jsonl and draws nothing."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch

from eval.metrics.clip_alignment import ClipAlignment
from eval.metrics.unlearn_canvas import Rate, UnlearnCanvas
from eval.scoring.rates import counted_rate
from eval.stats.clusters import clustered_rate
from eval.stats.intervals import Interval, mcnemar, paired_difference
from eval.suites.cases import OTHERWISE, PLAIN
from eval.suites.fine_grained import meant
from eval.suites.prompt_list import Axis, Listed, crossing
from eval.suites.suite import OTHER, Suite

AXES: tuple[Axis, Axis] = ("style", "object")
CLIP = ("kept", "target", "benign")
Row = dict[str, Any]


def counted(rows: Sequence[Row], suite: Suite, axis: Axis, targets: Sequence[str], only: str = "") -> dict[str, Any]:
    """Rates of every model as k, n and interval (eval.scoring.rates.rate_interval), paired differences, and confusion matrices.

    Args:
        only: label of the other axis, if the targets were meant to be erased with it alone.
    """
    if suite.listed:
        return _listed(rows, suite.listed, axis, targets)
    cross = crossing(axis)
    models: dict[str, Any] = {}
    grid = [row for row in rows if row["role"] == "grid"]
    if not all({axis, cross} <= row["read"].keys() for row in rows):  # a judge without weights
        return {"axis": axis, "targets": list(targets), "models": {}, "paired": {}}
    labels = _labels(grid, suite)
    for model in dict.fromkeys(row["model"] for row in rows):
        metric = UnlearnCanvas(labels[axis], labels[cross], targets, suite.apart, only)
        mine = [row for row in grid if row["model"] == model]
        read = {a: [_or_other(r["read"][a]["label"], labels[a]) for r in mine] for a in AXES}
        metric.update([(r[axis], r[cross]) for r in mine], list(zip(read[axis], read[cross], strict=True)))
        models[model] = {
            "rates": {
                name: counted_rate(*rate)
                for name, rate in {**metric.compute(), **_elsewhere([row for row in rows if row["model"] == model], axis)}.items()
            },
            "confusion": {"labels": labels[axis], "counts": metric.confusion().tolist()},
            "clip": {part: _clip([row for row in rows if row["model"] == model], axis, targets, part, only) for part in CLIP},
            "apart": _apart(mine, suite.apart),
        }
    return {
        "axis": axis,
        "targets": list(targets),
        "models": models,
        "paired": paired(rows, axis, targets, suite.apart, only),
        "clip_drop": clip_drop(rows, axis, targets, only),
    }


def _labels(grid: Sequence[Row], suite: Suite) -> dict[Axis, list[str]]:
    """What is asked for or read: the suite's labels, "none", and OTHER where a judge said something that the suite has no label for."""
    found: dict[Axis, list[str]] = {}
    for axis in AXES:
        own = [*suite.words(axis), "none"]
        found[axis] = own if all(row["read"][axis]["label"] in own for row in grid) else [*own, OTHER]
    return found


def _or_other(said: str, labels: Sequence[str]) -> str:
    return said if said in labels else OTHER


def _listed(rows: Sequence[Row], listed: Listed, axis: Axis, targets: Sequence[str]) -> dict[str, Any]:
    """The same of a suite of prompts alone: nothing of the concept's kind is asked for beside it, so no rate speaks of what is kept."""
    about = {"form": "prompts", "kind": listed.kind, "axis": axis, "targets": list(targets)}
    if not all(axis in row["read"] for row in rows):
        return {**about, "models": {}, "paired": {}}
    asked = [row for row in rows if row["role"] == "listed"]
    seen = dict.fromkeys([*targets, *sorted({row["read"][axis]["label"] for row in asked} - set(targets))])
    shown = {(row["variant"], row["index"]) for row in asked if row["model"] == "base" and _as_prompted(row, axis)}
    models: dict[str, Any] = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in asked if row["model"] == model]
        parts = {"UA": mine, "UA_shown": [row for row in mine if (row["variant"], row["index"]) in shown]}
        parts["UA_replayed"] = [row for row in rows if row["model"] == model and row["role"] == "replayed"]
        counts = [[sum(row[axis] == a and row["read"][axis]["label"] == b for row in mine) for b in seen] for a in seen]
        models[model] = {
            "rates": {name: _of_prompts(part, axis) for name, part in parts.items() if part},
            "confusion": {"labels": list(seen), "counts": counts},
            "clip": {part: _clip([row for row in rows if row["model"] == model], axis, targets, part, "") for part in CLIP},
            "apart": {},
        }
    return {**about, "models": models, "paired": paired(rows, axis, targets, ()), "clip_drop": clip_drop(rows, axis, targets)}


def _of_prompts(rows: Sequence[Row], axis: Axis) -> dict[str, Any]:
    """UA of pictures by prompts of a list; where a prompt has several, they are a cluster, worth `effective` independent pictures."""
    return clustered_rate(by_prompt(rows, lambda row: not _as_prompted(row, axis)))


def by_prompt(rows: Sequence[Row], success: Callable[[Row], bool]) -> list[list[bool]]:
    """Successes of pictures, those of one prompt together."""
    prompts: dict[str, list[bool]] = {}
    for row in rows:
        prompts.setdefault(row["prompt"], []).append(success(row))
    return list(prompts.values())


def _clip(rows: Sequence[Row], axis: Axis, targets: Sequence[str], part: str, only: str) -> dict[str, float] | None:
    """CLIP alignment of the pictures of a part; None without two of them or without the judge."""
    return _over_prompts([(r["prompt"], r["read"]["clip"]["cosine"]) for r in _part(rows, axis, targets, part, only)])


def clip_drop(rows: Sequence[Row], axis: Axis, targets: Sequence[str], only: str = "") -> dict[str, dict[str, float] | None]:
    """By how much CLIP alignment falls from base to erased on the same prompts and noise, by part; None where there is nothing to pair."""
    found = {}
    for part in CLIP:
        cosines = {
            (r["model"], r["role"], r["variant"], r["style"], r["object"], r["index"]): (r["prompt"], r["read"]["clip"]["cosine"])
            for r in _part(rows, axis, targets, part, only)
        }
        pairs = [(cosines.get(("base", *key)), said) for (model, *key), said in cosines.items() if model == "erased"]
        found[part] = _over_prompts([(prompt, base[1] - cosine) for base, (prompt, cosine) in pairs if base])
    return found


def _part(rows: Sequence[Row], axis: Axis, targets: Sequence[str], part: str, only: str) -> list[Row]:
    """Pictures of one of CLIP's parts that were read for alignment."""
    return [
        r
        for r in rows
        if "clip" in r["read"]
        and (r["role"] == "benign" if part == "benign" else r["role"] in PLAIN and meant(r, axis, targets, only) == (part == "target"))
    ]


def _over_prompts(values: Sequence[tuple[str, float]]) -> dict[str, float] | None:
    """Mean and t interval over prompts; of a single prompt over its pictures, as an audit of one cell asks. None for less than two."""
    prompts: dict[str, list[float]] = {}
    for prompt, value in values:
        prompts.setdefault(prompt, []).append(value)
    units = [fmean(some) for some in prompts.values()] if len(prompts) > 1 else [value for _, value in values]
    if len(units) < 2:
        return None
    metric = ClipAlignment()
    metric.update(torch.tensor(units))
    return {name: round(value, 3) for name, value in metric.compute()._asdict().items()}


def _elsewhere(rows: Sequence[Row], axis: Axis) -> dict[str, Rate]:
    """UA of pictures that ask for the concept in other words, by how they do; and whether its neighbours are still read."""
    found = {}
    for role in OTHERWISE:
        gone = [row["read"][axis]["label"] != row[axis] for row in rows if row["role"] == role]
        if gone:
            found[f"UA_{role}"] = Rate(sum(gone), len(gone))
    near = [_as_prompted(row, axis) for row in rows if row["role"] == "neighbour"]
    return {**found, "NRA": Rate(sum(near), len(near))} if near else found


def _apart(rows: Sequence[Row], apart: Sequence[str]) -> dict[str, dict[str, int]]:
    """Styles that count in no rate: pictures read as prompted."""
    found = {}
    for label in apart:
        mine = [r for r in rows if r["style"] == label]
        found[label] = {"k": sum(r["read"]["style"]["label"] == label for r in mine), "n": len(mine)}
    return found


def paired(
    rows: Sequence[Row],
    axis: Axis,
    targets: Sequence[str],
    apart: Sequence[str],
    only: str = "",
    *,
    first: str = "base",
    second: str = "erased",
) -> dict[str, Any]:
    """The second model minus the first on the same cases and noise: difference of each rate, its interval, and McNemar's p."""
    cross = crossing(axis)
    if {first, second} - {r["model"] for r in rows}:
        return {}

    def gone(row: Row) -> bool:
        return meant(row, axis, targets, only)

    pairs = {(r["role"], r["variant"], r["style"], r["object"], r["index"], r["model"]): r for r in rows}
    keys = sorted({key[:-1] for key in pairs})
    tests = {
        "UA": (axis, lambda r: r["role"] in PLAIN and gone(r), lambda r, a: r["read"][a]["label"] != r[a]),
        "FR": (axis, lambda r: r["role"] == "grid" and r[axis] in targets and not gone(r), _as_prompted),
        "IRA": (axis, lambda r: r["role"] == "grid" and r[axis] not in targets and r[axis] not in apart, _as_prompted),
        "CRA": (cross, lambda r: r["role"] == "grid" and not gone(r) and r[cross] not in apart, _as_prompted),
        "IPA": (cross, lambda r: r["role"] == "grid" and gone(r) and r[cross] not in apart, _as_prompted),
        "NRA": (axis, lambda r: r["role"] == "neighbour", _as_prompted),
    }
    found = {}
    for name, (read, counts, success) in tests.items():
        table = [0, 0, 0, 0]
        for key in keys:
            base, erased = pairs[*key, first], pairs[*key, second]
            if counts(base):
                table[2 * (not success(erased, read)) + (not success(base, read))] += 1
        both, erased_only, base_only, neither = table
        if not sum(table):
            continue
        difference: Interval = paired_difference(both, erased_only, base_only, neither)
        cells = {"both": both, "erased_only": erased_only, "base_only": base_only, "neither": neither}
        found[name] = {**difference._asdict(), **cells, "p": mcnemar(erased_only, base_only)}
    return found


def _as_prompted(row: Row, axis: str) -> bool:
    return row["read"][axis]["label"] == row[axis]
