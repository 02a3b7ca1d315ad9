"""The retrain gap: where an erasure lies between its base and models retrained without the concept, by several measures.

A measure is a distance between two models with the same prompts and noise. Against a retrained model it says how far an erased model still
is from one that never learned the concept. The distance between two retrained models is the best that an erasure can be asked for.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, product
from math import sqrt
from typing import NamedTuple

import numpy as np

from eval.records.audit_result import AuditResult
from eval.records.axes import Axis
from eval.records.distances import CountedMeasure, Measure, ModelDistance, RetrainGap
from eval.records.fields import ImagePart
from eval.records.models import BASE, ERASED, AuditedModel, ModelRole
from eval.records.rates import RateName
from eval.records.rows import SampleRow
from eval.report.numbers import format_span
from eval.scoring.counting import paired_differences
from eval.stats.intervals import Interval, jackknife_variance, student_t
from eval.suites.cases import PLAIN_ROLES
from eval.suites.fine_grained import is_erasure_target

GAP_RATES: dict[RateName, CountedMeasure] = {RateName.UA: "UA", RateName.IRA: "IRA", RateName.CRA: "CRA"}
DISTANCE_TITLES: dict[Measure, str] = {
    "UA": "UA, percentage points",
    "IRA": "IRA, percentage points",
    "CRA": "CRA, percentage points",
    "replacement_labels": "labels in the concept's place, total variation",
    "kid_different_noise": "KID of images from different noise",
    "nats": "denoiser divergence, nats per image, mean of both directions",
}


class Distance(NamedTuple):
    """How far a model is from a retrained model, by some measure."""

    model: AuditedModel
    value: Interval


def model_pairs(models: Sequence[AuditedModel]) -> list[tuple[AuditedModel, AuditedModel]]:
    """Return which models are compared: base and erased with every retrained model, and the retrained models with each other."""
    retrained = [model for model in models if model.is_retrained]
    return [(model, retrained_model) for retrained_model in retrained for model in (BASE, ERASED)] + list(combinations(retrained, 2))


def model_distances(
    rows: Sequence[SampleRow], axis: Axis, targets: Sequence[str], excluded: Sequence[str], only: str = ""
) -> tuple[ModelDistance, ...]:
    """Return differences of rates (Newcombe, paired) and of the labels in the concept's place, for each pair of models compared."""
    distances: list[ModelDistance] = []
    for first, second in model_pairs(tuple(dict.fromkeys(row.model for row in rows))):
        differences = paired_differences(rows, axis, targets, excluded, only, first=first, second=second)
        for rate, measure in GAP_RATES.items():
            if difference := differences.get(rate):
                value = Interval(difference.estimate, difference.low, difference.high)
                distances.append(ModelDistance(measure=measure, first=first, second=second, value=value))
        target_rows = [row for row in rows if row.role in PLAIN_ROLES and is_erasure_target(vars(row), axis, targets, only)]
        first_rows, second_rows = ([row for row in target_rows if row.model == model] for model in (first, second))
        variation = Interval(*(round(value, 6) for value in total_variation(first_rows, second_rows, axis)))
        distances.append(ModelDistance(measure="replacement_labels", first=first, second=second, value=variation))
    return tuple(distances)


def total_variation(first: Sequence[SampleRow], second: Sequence[SampleRow], axis: Axis) -> Interval:
    """Return half the sum of |p - q| over labels, p and q the shares of a judge's labels on two models' images.

    The interval is Student's t around the estimate, within [0, 1], by jackknife over prompts, which leaves out all images of a prompt at
    once; with one prompt it is [0, 1]. Finite counts bias the estimate upwards, for equal models too, and the interval is that of its own
    mean: compare it with the distance between two retrained models. A bootstrap adds the same bias again and can lie entirely above its
    estimate.
    """
    prompts = sorted({row.prompt for row in (*first, *second)})
    labels = sorted({row.judged(axis) or "" for row in (*first, *second)})
    counts = []
    for side in (first, second):
        label_counts = Counter((row.prompt, row.judged(axis)) for row in side)
        counts.append(np.array([[label_counts[prompt, label] for label in labels] for prompt in prompts], dtype=float))
    estimate = float(_total_variations(*(side.sum(0, keepdims=True) for side in counts))[0])
    if len(prompts) < 2:
        return Interval(estimate, 0.0, 1.0)
    leave_one_out = _total_variations(*(side.sum(0) - side for side in counts)).tolist()
    half_width = student_t(len(prompts) - 1) * sqrt(jackknife_variance(leave_one_out))
    return Interval(estimate, max(estimate - half_width, 0.0), min(estimate + half_width, 1.0))


def _total_variations(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    shares = [side / side.sum(1, keepdims=True).clip(min=1) for side in (p, q)]
    distances: np.ndarray = np.abs(shares[0] - shares[1]).sum(1) / 2
    return distances


def retrain_gaps(result: AuditResult) -> tuple[RetrainGap, ...]:
    """Return the distances of base and erased model to the retrained models, and of these to each other; empty without a retrained model.

    Several retrained models are averaged, bounds included: as wide as if all erred in one direction. `gap_closed` is the share of the gap
    between the base's distance and that between two retrained models that the erasure closed: 1 if the erased model is as near as retrained
    models are to each other, below 0 if it moved away from them.
    """
    distances: dict[tuple[Measure, ImagePart], list[Distance]] = {}
    for counted in result.model_distances:
        prompts: ImagePart = "target" if counted.measure in ("UA", "replacement_labels") else "retained"
        scale = 1 if counted.measure == "replacement_labels" else 100  # percentage points
        value = Interval(*(scale * bound for bound in counted.value))
        distances.setdefault((counted.measure, prompts), []).append(Distance(counted.first, value))
    kid_by_part = (result.image_set_distances.model_pairs or {}) if result.image_set_distances else {}
    for part, pairs in kid_by_part.items():
        for pair in pairs:
            if pair.value is not None and pair.low is not None and pair.high is not None:
                kid = Interval(pair.value, pair.low, pair.high)
                distances.setdefault(("kid_different_noise", part), []).append(Distance(pair.first, kid))
    for divergence in result.denoiser_divergences:
        if divergence.nats and divergence.second.is_retrained:
            distances.setdefault(("nats", divergence.part), []).append(Distance(divergence.first, divergence.nats.mean))
    order = sorted(distances, key=lambda key: (key[1] != "target", list(DISTANCE_TITLES).index(key[0])))
    return tuple(_retrain_gap(measure, prompts, distances[measure, prompts]) for measure, prompts in order)


def _retrain_gap(measure: Measure, prompts: ImagePart, distances: Sequence[Distance]) -> RetrainGap:
    base, erased, between_retrained = (_mean_distance(distances, role) for role in ModelRole)
    return RetrainGap(
        measure=measure,
        title=DISTANCE_TITLES[measure],
        prompts=prompts,
        base=base,
        erased=erased,
        between_retrained=between_retrained,
        gap_closed=_gap_closed(base, erased, between_retrained),
    )


def _mean_distance(distances: Sequence[Distance], role: ModelRole) -> Interval | None:
    values = [distance.value for distance in distances if distance.model.role is role]
    return Interval(*(float(f"{value:.6g}") for value in np.mean(values, axis=0))) if values else None


def _gap_closed(base: Interval | None, erased: Interval | None, between_retrained: Interval | None) -> Interval | None:
    """Return (d(base) - d(erased)) / (d(base) - d(between retrained)), and its extremes while each distance stays within its interval.

    So the bounds cover more than 95%, since not all three err at once. None if the interval of the base reaches down to that between
    retrained models: then the base is not shown to be further from them than they are from each other, and there is no gap to close.
    """
    if base is None or erased is None:
        return None
    base_distance, erased_distance, retrained_distance = (
        _absolute_interval(distance) for distance in (base, erased, between_retrained or Interval(0.0, 0.0, 0.0))
    )
    if base_distance.low <= retrained_distance.high:
        return None
    shares = [(b - e) / (b - r) for b, e, r in product(base_distance, erased_distance, retrained_distance)]
    return Interval(*(round(value, 4) for value in (shares[0], min(shares), max(shares))))


def _absolute_interval(distance: Interval) -> Interval:
    """Return |d| and the bounds of |d|."""
    value, low, high = distance
    absolute_bounds = sorted((abs(low), abs(high)))
    return Interval(abs(value), 0.0 if low <= 0 <= high else absolute_bounds[0], absolute_bounds[1])


def describe_gap_closed(gaps: Sequence[RetrainGap]) -> list[str]:
    """Say in one sentence how much of the gap the erasure closed on the concept's own prompts, by every measure.

    The measures need not agree (docs/results/retrained.md).
    """
    closed_by_title = {gap.title.partition(",")[0]: gap.gap_closed for gap in gaps if gap.prompts == "target" and gap.gap_closed}
    if not closed_by_title:
        return []
    has_retrained_distance = any(gap.between_retrained for gap in gaps if gap.prompts == "target" and gap.gap_closed)
    destination = (
        "as near as two models retrained without the concept are to each other"
        if has_retrained_distance
        else "a model retrained without the concept"
    )
    descriptions = [
        f"{100 * closed:z.0f}% by {title} ({format_span(100 * low, 100 * high, 0)})"
        for title, (closed, low, high) in closed_by_title.items()
    ]
    return [f"Of the gap between the base (0%) and {destination} (100%), the erased model closed {'; '.join(descriptions)}."]
