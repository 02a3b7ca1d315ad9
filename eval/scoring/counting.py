"""Judge scores -> rates. Every function takes rows of samples.jsonl and generates nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

import torch

from eval.metrics.clip_alignment import ClipAlignment
from eval.metrics.unlearn_canvas import RateCount, UnlearnCanvasRates
from eval.records.audit_result import AuditCounts
from eval.records.axes import AXES, Axis, cross_axis
from eval.records.models import BASE, ERASED, AuditedModel
from eval.records.rates import (
    AlignmentByPart,
    ConfusionMatrix,
    CountedRate,
    MeanEstimate,
    ModelFigures,
    PairedDifference,
    RateName,
    SuccessCount,
)
from eval.records.rows import SampleRow
from eval.scoring.rates import clustered_rate, counted_rate
from eval.stats.intervals import mcnemar, paired_difference
from eval.suites.cases import PLAIN_ROLES, REPHRASED_ROLES
from eval.suites.fine_grained import is_erasure_target
from eval.suites.formats import OTHER_LABEL, GridSuite, PromptListSuite, Suite


def count_rates(rows: Sequence[SampleRow], suite: Suite, axis: Axis, targets: Sequence[str], only: str = "") -> AuditCounts:
    """Count the rates of every model with intervals (eval.scoring.rates), paired differences, and confusion matrices.

    Args:
        only: label of the other axis if the targets should be erased on it alone.

    Returns:
        counts without figures of any model if a judge is missing.
    """
    if isinstance(suite, PromptListSuite):
        return _count_prompt_list(rows, suite, axis, targets)
    cross = cross_axis(axis)
    models: dict[AuditedModel, ModelFigures] = {}
    grid = [row for row in rows if row.role == "grid"]
    if not all(row.is_judged(axis) and row.is_judged(cross) for row in rows):  # a judge has no weights
        return AuditCounts(axis=axis, targets=tuple(targets), models={}, paired={})
    labels = _axis_labels(grid, suite)
    for model in dict.fromkeys(row.model for row in rows):
        metric = UnlearnCanvasRates(labels[axis], labels[cross], targets, suite.excluded, only)
        model_rows = [row for row in grid if row.model == model]
        read_labels = {a: [_label_or_other(row.judged(a), labels[a]) for row in model_rows] for a in AXES}
        prompted_labels = [(row.prompted(axis), row.prompted(cross)) for row in model_rows]
        metric.update(prompted_labels, list(zip(read_labels[axis], read_labels[cross], strict=True)))
        all_rows = [row for row in rows if row.model == model]
        models[model] = ModelFigures(
            rates={name: counted_rate(*rate) for name, rate in {**metric.compute(), **_rephrased_rates(all_rows, axis)}.items()},
            confusion=_confusion_matrix(labels[axis], metric.confusion().tolist()),
            clip=clip_alignment(all_rows, axis, targets, only),
            excluded=_excluded_counts(model_rows, suite.excluded),
        )
    return AuditCounts(
        axis=axis,
        targets=tuple(targets),
        models=models,
        paired=paired_differences(rows, axis, targets, suite.excluded, only),
        clip_drop=clip_drops(rows, axis, targets, only),
    )


def _confusion_matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> ConfusionMatrix:
    return ConfusionMatrix(labels=tuple(labels), counts=tuple(map(tuple, counts)))


def _axis_labels(grid: Sequence[SampleRow], suite: GridSuite) -> dict[Axis, list[str]]:
    """Return the labels of confusion matrices: the suite's, "none", and OTHER_LABEL if a judge read something else."""
    labels: dict[Axis, list[str]] = {}
    for axis in AXES:
        known_labels = [*suite.phrases(axis), "none"]
        labels[axis] = known_labels if all(row.judged(axis) in known_labels for row in grid) else [*known_labels, OTHER_LABEL]
    return labels


def _label_or_other(label: str | None, labels: Sequence[str]) -> str:
    return label if label is not None and label in labels else OTHER_LABEL


def _count_prompt_list(rows: Sequence[SampleRow], suite: PromptListSuite, axis: Axis, targets: Sequence[str]) -> AuditCounts:
    """Count the rates of a prompt-list suite. None is about what is retained: no prompt asks for anything else of the concept's kind."""
    uncounted = AuditCounts(suite_format="prompt_list", kind=suite.kind, axis=axis, targets=tuple(targets), models={}, paired={})
    if not all(row.is_judged(axis) for row in rows):
        return uncounted
    list_rows = [row for row in rows if row.role == "prompt_list"]
    labels = dict.fromkeys([*targets, *sorted({row.judged(axis) or "" for row in list_rows} - set(targets))])
    shown_by_base = {(row.variant, row.index) for row in list_rows if row.model == BASE and row.is_as_prompted(axis)}
    models: dict[AuditedModel, ModelFigures] = {}
    for model in dict.fromkeys(row.model for row in rows):
        all_rows = [row for row in rows if row.model == model]
        model_rows = [row for row in list_rows if row.model == model]
        rows_by_rate = {
            RateName.UA: model_rows,
            RateName.UA_SHOWN: [row for row in model_rows if (row.variant, row.index) in shown_by_base],
            RateName.UA_REPLAYED: [row for row in all_rows if row.role == "replayed"],
        }
        counts = [[sum((row.prompted(axis), row.judged(axis)) == (a, b) for row in model_rows) for b in labels] for a in labels]
        models[model] = ModelFigures(
            rates={name: _prompt_clustered_rate(part, axis) for name, part in rows_by_rate.items() if part},
            confusion=_confusion_matrix(list(labels), counts),
            clip=clip_alignment(all_rows, axis, targets),
            excluded={},
        )
    paired = paired_differences(rows, axis, targets, ())
    return replace(uncounted, models=models, paired=paired, clip_drop=clip_drops(rows, axis, targets))


def _prompt_clustered_rate(rows: Sequence[SampleRow], axis: Axis) -> CountedRate:
    """Return UA over the prompts of a list; several images of a prompt are a cluster, so that n is worth `effective` independent images."""
    return clustered_rate(group_by_prompt(rows, lambda row: not row.is_as_prompted(axis)))


def group_by_prompt(rows: Sequence[SampleRow], is_success: Callable[[SampleRow], bool]) -> list[list[bool]]:
    """Return the outcomes of images, grouped by prompt."""
    successes: dict[str, list[bool]] = {}
    for row in rows:
        successes.setdefault(row.prompt, []).append(is_success(row))
    return list(successes.values())


def clip_alignment(rows: Sequence[SampleRow], axis: Axis, targets: Sequence[str], only: str = "") -> AlignmentByPart:
    """Return the mean CLIP alignment (100 x cosine) of each part's images; None without the judge or with fewer than two images."""

    def mean_alignment(part_rows: Sequence[SampleRow]) -> MeanEstimate | None:
        return _mean_over_prompts([(row.prompt, row.scores.clip.cosine) for row in part_rows if row.scores.clip])

    return _by_part(rows, axis, targets, only, mean_alignment)


def clip_drops(rows: Sequence[SampleRow], axis: Axis, targets: Sequence[str], only: str = "") -> AlignmentByPart:
    """Return by how much CLIP alignment falls from base to erased on the same prompts and noise, by part; None if nothing can be paired."""

    def mean_drop(part_rows: Sequence[SampleRow]) -> MeanEstimate | None:
        cosines = {(row.model, row.case_key): row.scores.clip.cosine for row in part_rows if row.scores.clip}
        drops = []
        for row in part_rows:
            base, erased = cosines.get((BASE, row.case_key)), cosines.get((ERASED, row.case_key))
            if row.model == ERASED and base is not None and erased is not None:
                drops.append((row.prompt, base - erased))
        return _mean_over_prompts(drops)

    return _by_part(rows, axis, targets, only, mean_drop)


def _by_part(
    rows: Sequence[SampleRow],
    axis: Axis,
    targets: Sequence[str],
    only: str,
    measure: Callable[[Sequence[SampleRow]], MeanEstimate | None],
) -> AlignmentByPart:
    """Measure the alignment of every part: prompts to retain, prompts that ask for what should be erased, and benign captions."""
    plain = [row for row in rows if row.role in PLAIN_ROLES]
    target = [row for row in plain if is_erasure_target(vars(row), axis, targets, only)]
    retained = [row for row in plain if not is_erasure_target(vars(row), axis, targets, only)]
    return AlignmentByPart(
        retained=measure(retained), target=measure(target), benign=measure([row for row in rows if row.role == "benign"])
    )


def _mean_over_prompts(values: Sequence[tuple[str, float]]) -> MeanEstimate | None:
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
    estimate, low, high = (round(value, 3) for value in metric.compute())
    return MeanEstimate(estimate=estimate, low=low, high=high)


def _rephrased_rates(rows: Sequence[SampleRow], axis: Axis) -> dict[RateName, RateCount]:
    """Return UA by the kind of rephrasing, and NRA, the share of neighbors that are still read as prompted."""
    rates = {}
    for role in REPHRASED_ROLES:
        outcomes = [not row.is_as_prompted(axis) for row in rows if row.role == role]
        if outcomes:
            rates[RateName(f"UA_{role}")] = RateCount(sum(outcomes), len(outcomes))
    neighbor_outcomes = [row.is_as_prompted(axis) for row in rows if row.role == "neighbor"]
    return {**rates, RateName.NRA: RateCount(sum(neighbor_outcomes), len(neighbor_outcomes))} if neighbor_outcomes else rates


def _excluded_counts(rows: Sequence[SampleRow], excluded: Sequence[str]) -> dict[str, SuccessCount]:
    """Count how often the excluded styles, which are in no rate, are read as prompted."""
    counts = {}
    for label in excluded:
        label_rows = [row for row in rows if row.style == label]
        counts[label] = SuccessCount(k=sum(row.is_as_prompted("style") for row in label_rows), n=len(label_rows))
    return counts


def paired_differences(
    rows: Sequence[SampleRow],
    axis: Axis,
    targets: Sequence[str],
    excluded: Sequence[str],
    only: str = "",
    *,
    first: AuditedModel = BASE,
    second: AuditedModel = ERASED,
) -> dict[RateName, PairedDifference]:
    """Return for each rate the second model minus the first on the same cases and noise, with its interval and McNemar's p."""
    cross = cross_axis(axis)
    if {first, second} - {row.model for row in rows}:
        return {}

    def is_erased(row: SampleRow) -> bool:
        return is_erasure_target(vars(row), axis, targets, only)

    rows_by_key = {(row.model, row.case_key): row for row in rows}
    keys = sorted({row.case_key for row in rows})
    tests: dict[RateName, tuple[Axis, Callable[[SampleRow], bool]]] = {
        RateName.UA: (axis, lambda row: row.role in PLAIN_ROLES and is_erased(row)),
        RateName.FR: (axis, lambda row: row.role == "grid" and row.prompted(axis) in targets and not is_erased(row)),
        RateName.IRA: (axis, lambda row: row.role == "grid" and row.prompted(axis) not in (*targets, *excluded)),
        RateName.CRA: (cross, lambda row: row.role == "grid" and not is_erased(row) and row.prompted(cross) not in excluded),
        RateName.IPA: (cross, lambda row: row.role == "grid" and is_erased(row) and row.prompted(cross) not in excluded),
        RateName.NRA: (axis, lambda row: row.role == "neighbor"),
    }
    differences = {}
    for name, (judged_axis, is_counted) in tests.items():
        table = [0, 0, 0, 0]
        for key in keys:
            first_row, second_row = rows_by_key[first, key], rows_by_key[second, key]
            if is_counted(first_row) and first_row.is_judged(judged_axis) and second_row.is_judged(judged_axis):
                # a success is another label than the target's, and the prompted label elsewhere
                succeeded = [row.is_as_prompted(judged_axis) != (name is RateName.UA) for row in (second_row, first_row)]
                table[2 * (not succeeded[0]) + (not succeeded[1])] += 1
        if sum(table):
            differences[name] = _paired_difference(*table)
    return differences


def _paired_difference(both: int, erased_only: int, base_only: int, neither: int) -> PairedDifference:
    """Return the second model's rate minus the first's from the number of images on which either, both or neither succeeded."""
    estimate, low, high = paired_difference(both, erased_only, base_only, neither)
    return PairedDifference(
        estimate=estimate,
        low=low,
        high=high,
        both=both,
        erased_only=erased_only,
        base_only=base_only,
        neither=neither,
        p=mcnemar(erased_only, base_only),
    )
