"""Judge scores -> rates. Every function takes rows of samples.jsonl and generates nothing."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch

from eval.metrics.clip_alignment import ClipAlignment
from eval.metrics.unlearn_canvas import RateCount, UnlearnCanvasRates
from eval.scoring.rates import counted_rate
from eval.stats.clusters import clustered_rate
from eval.stats.intervals import Interval, mcnemar, paired_difference
from eval.suites.axes import Axis, cross_axis
from eval.suites.cases import PLAIN_ROLES, REPHRASED_ROLES
from eval.suites.fine_grained import is_erasure_target
from eval.suites.formats import OTHER_LABEL, GridSuite, PromptListSuite, Suite

AXES: tuple[Axis, Axis] = ("style", "object")
CLIP_PARTS = ("retained", "target", "benign")
SampleRow = dict[str, Any]


def count_rates(rows: Sequence[SampleRow], suite: Suite, axis: Axis, targets: Sequence[str], only: str = "") -> dict[str, Any]:
    """Count the rates of every model with intervals (eval.scoring.rates), paired differences, and confusion matrices.

    Args:
        only: label of the other axis if the targets should be erased on it alone.

    Returns:
        axis, targets, models, paired, clip_drop of a result (eval.records.AuditResult); models is empty if a judge is missing.
    """
    if isinstance(suite, PromptListSuite):
        return _count_prompt_list(rows, suite, axis, targets)
    cross = cross_axis(axis)
    models: dict[str, Any] = {}
    grid = [row for row in rows if row["role"] == "grid"]
    if not all({axis, cross} <= row["scores"].keys() for row in rows):  # a judge has no weights
        return {"axis": axis, "targets": list(targets), "models": {}, "paired": {}}
    labels = _axis_labels(grid, suite)
    for model in dict.fromkeys(row["model"] for row in rows):
        metric = UnlearnCanvasRates(labels[axis], labels[cross], targets, suite.excluded, only)
        model_rows = [row for row in grid if row["model"] == model]
        read_labels = {a: [_label_or_other(r["scores"][a]["label"], labels[a]) for r in model_rows] for a in AXES}
        metric.update([(r[axis], r[cross]) for r in model_rows], list(zip(read_labels[axis], read_labels[cross], strict=True)))
        models[model] = {
            "rates": {
                name: counted_rate(*rate)
                for name, rate in {**metric.compute(), **_rephrased_rates([row for row in rows if row["model"] == model], axis)}.items()
            },
            "confusion": {"labels": labels[axis], "counts": metric.confusion().tolist()},
            "clip": {
                part: _clip_alignment([row for row in rows if row["model"] == model], axis, targets, part, only) for part in CLIP_PARTS
            },
            "excluded": _excluded_counts(model_rows, suite.excluded),
        }
    return {
        "axis": axis,
        "targets": list(targets),
        "models": models,
        "paired": paired_differences(rows, axis, targets, suite.excluded, only),
        "clip_drop": clip_drops(rows, axis, targets, only),
    }


def _axis_labels(grid: Sequence[SampleRow], suite: GridSuite) -> dict[Axis, list[str]]:
    """Return the labels of confusion matrices: the suite's, "none", and OTHER_LABEL if a judge read something else."""
    labels: dict[Axis, list[str]] = {}
    for axis in AXES:
        known_labels = [*suite.phrases(axis), "none"]
        labels[axis] = known_labels if all(row["scores"][axis]["label"] in known_labels for row in grid) else [*known_labels, OTHER_LABEL]
    return labels


def _label_or_other(label: str, labels: Sequence[str]) -> str:
    return label if label in labels else OTHER_LABEL


def _count_prompt_list(rows: Sequence[SampleRow], suite: PromptListSuite, axis: Axis, targets: Sequence[str]) -> dict[str, Any]:
    """Count the rates of a prompt-list suite. None is about what is retained: no prompt asks for anything else of the concept's kind."""
    header = {"suite_format": "prompt_list", "kind": suite.kind, "axis": axis, "targets": list(targets)}
    if not all(axis in row["scores"] for row in rows):
        return {**header, "models": {}, "paired": {}}
    list_rows = [row for row in rows if row["role"] == "prompt_list"]
    labels = dict.fromkeys([*targets, *sorted({row["scores"][axis]["label"] for row in list_rows} - set(targets))])
    shown_by_base = {(row["variant"], row["index"]) for row in list_rows if row["model"] == "base" and _is_read_as_prompted(row, axis)}
    models: dict[str, Any] = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        model_rows = [row for row in list_rows if row["model"] == model]
        rows_by_rate = {"UA": model_rows, "UA_shown": [row for row in model_rows if (row["variant"], row["index"]) in shown_by_base]}
        rows_by_rate["UA_replayed"] = [row for row in rows if row["model"] == model and row["role"] == "replayed"]
        counts = [[sum(row[axis] == a and row["scores"][axis]["label"] == b for row in model_rows) for b in labels] for a in labels]
        models[model] = {
            "rates": {name: _prompt_clustered_rate(part, axis) for name, part in rows_by_rate.items() if part},
            "confusion": {"labels": list(labels), "counts": counts},
            "clip": {part: _clip_alignment([row for row in rows if row["model"] == model], axis, targets, part, "") for part in CLIP_PARTS},
            "excluded": {},
        }
    return {**header, "models": models, "paired": paired_differences(rows, axis, targets, ()), "clip_drop": clip_drops(rows, axis, targets)}


def _prompt_clustered_rate(rows: Sequence[SampleRow], axis: Axis) -> dict[str, Any]:
    """Return UA over the prompts of a list; several images of a prompt are a cluster, so that n is worth `effective` independent images."""
    return clustered_rate(group_by_prompt(rows, lambda row: not _is_read_as_prompted(row, axis)))


def group_by_prompt(rows: Sequence[SampleRow], is_success: Callable[[SampleRow], bool]) -> list[list[bool]]:
    """Return the outcomes of images, grouped by prompt."""
    successes: dict[str, list[bool]] = {}
    for row in rows:
        successes.setdefault(row["prompt"], []).append(is_success(row))
    return list(successes.values())


def _clip_alignment(rows: Sequence[SampleRow], axis: Axis, targets: Sequence[str], part: str, only: str) -> dict[str, float] | None:
    """Return the mean CLIP alignment (100 x cosine) of a part's images; None without the judge or with fewer than two images."""
    return _mean_over_prompts([(r["prompt"], r["scores"]["clip"]["cosine"]) for r in _clip_rows(rows, axis, targets, part, only)])


def clip_drops(rows: Sequence[SampleRow], axis: Axis, targets: Sequence[str], only: str = "") -> dict[str, dict[str, float] | None]:
    """Return by how much CLIP alignment falls from base to erased on the same prompts and noise, by part; None if nothing can be paired."""
    drops = {}
    for part in CLIP_PARTS:
        cosines = {
            (r["model"], r["role"], r["variant"], r["style"], r["object"], r["index"]): (r["prompt"], r["scores"]["clip"]["cosine"])
            for r in _clip_rows(rows, axis, targets, part, only)
        }
        pairs = [(cosines.get(("base", *key)), erased) for (model, *key), erased in cosines.items() if model == "erased"]
        drops[part] = _mean_over_prompts([(prompt, base[1] - cosine) for base, (prompt, cosine) in pairs if base])
    return drops


def _clip_rows(rows: Sequence[SampleRow], axis: Axis, targets: Sequence[str], part: str, only: str) -> list[SampleRow]:
    """Return the rows of a part that have a CLIP score."""
    return [
        r
        for r in rows
        if "clip" in r["scores"]
        and (
            r["role"] == "benign"
            if part == "benign"
            else r["role"] in PLAIN_ROLES and is_erasure_target(r, axis, targets, only) == (part == "target")
        )
    ]


def _mean_over_prompts(values: Sequence[tuple[str, float]]) -> dict[str, float] | None:
    """Return mean and t interval over prompts, or over the images of a single prompt; None for fewer than two values."""
    values_by_prompt: dict[str, list[float]] = {}
    for prompt, value in values:
        values_by_prompt.setdefault(prompt, []).append(value)
    units = (
        [fmean(prompt_values) for prompt_values in values_by_prompt.values()]
        if len(values_by_prompt) > 1
        else [value for _, value in values]
    )
    if len(units) < 2:
        return None
    metric = ClipAlignment()
    metric.update(torch.tensor(units))
    return {name: round(value, 3) for name, value in metric.compute()._asdict().items()}


def _rephrased_rates(rows: Sequence[SampleRow], axis: Axis) -> dict[str, RateCount]:
    """Return UA by the kind of rephrasing, and NRA, the share of neighbors that are still read as prompted."""
    rates = {}
    for role in REPHRASED_ROLES:
        outcomes = [row["scores"][axis]["label"] != row[axis] for row in rows if row["role"] == role]
        if outcomes:
            rates[f"UA_{role}"] = RateCount(sum(outcomes), len(outcomes))
    neighbor_outcomes = [_is_read_as_prompted(row, axis) for row in rows if row["role"] == "neighbor"]
    return {**rates, "NRA": RateCount(sum(neighbor_outcomes), len(neighbor_outcomes))} if neighbor_outcomes else rates


def _excluded_counts(rows: Sequence[SampleRow], excluded: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count how often the excluded styles, which are in no rate, are read as prompted."""
    counts = {}
    for label in excluded:
        label_rows = [r for r in rows if r["style"] == label]
        counts[label] = {"k": sum(r["scores"]["style"]["label"] == label for r in label_rows), "n": len(label_rows)}
    return counts


def paired_differences(
    rows: Sequence[SampleRow],
    axis: Axis,
    targets: Sequence[str],
    excluded: Sequence[str],
    only: str = "",
    *,
    first: str = "base",
    second: str = "erased",
) -> dict[str, Any]:
    """Return for each rate the second model minus the first on the same cases and noise, with its interval and McNemar's p."""
    cross = cross_axis(axis)
    if {first, second} - {r["model"] for r in rows}:
        return {}

    def is_erased(row: SampleRow) -> bool:
        return is_erasure_target(row, axis, targets, only)

    rows_by_key = {(r["role"], r["variant"], r["style"], r["object"], r["index"], r["model"]): r for r in rows}
    keys = sorted({key[:-1] for key in rows_by_key})
    tests = {
        "UA": (axis, lambda r: r["role"] in PLAIN_ROLES and is_erased(r), lambda r, a: r["scores"][a]["label"] != r[a]),
        "FR": (axis, lambda r: r["role"] == "grid" and r[axis] in targets and not is_erased(r), _is_read_as_prompted),
        "IRA": (axis, lambda r: r["role"] == "grid" and r[axis] not in targets and r[axis] not in excluded, _is_read_as_prompted),
        "CRA": (cross, lambda r: r["role"] == "grid" and not is_erased(r) and r[cross] not in excluded, _is_read_as_prompted),
        "IPA": (cross, lambda r: r["role"] == "grid" and is_erased(r) and r[cross] not in excluded, _is_read_as_prompted),
        "NRA": (axis, lambda r: r["role"] == "neighbor", _is_read_as_prompted),
    }
    differences = {}
    for name, (judged_axis, is_counted, is_success) in tests.items():
        table = [0, 0, 0, 0]
        for key in keys:
            first_row, second_row = rows_by_key[*key, first], rows_by_key[*key, second]
            if is_counted(first_row):
                table[2 * (not is_success(second_row, judged_axis)) + (not is_success(first_row, judged_axis))] += 1
        both, erased_only, base_only, neither = table
        if not sum(table):
            continue
        difference: Interval = paired_difference(both, erased_only, base_only, neither)
        cells = {"both": both, "erased_only": erased_only, "base_only": base_only, "neither": neither}
        differences[name] = {**difference._asdict(), **cells, "p": mcnemar(erased_only, base_only)}
    return differences


def _is_read_as_prompted(row: SampleRow, axis: str) -> bool:
    return row["scores"][axis]["label"] == row[axis]
