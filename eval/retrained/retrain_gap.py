"""The retrain gap: where an erasure lies between its base and models retrained without the concept, by several measures.

A measure is a distance between two models with the same prompts and noise. Against a retrained model it says how far an erased model still
is from one that never learned the concept. The distance between two retrained models is the best that an erasure can be asked for.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from math import sqrt
from typing import Any

import numpy as np

from eval.report.numbers import format_span
from eval.scoring.counting import SampleRow, paired_differences
from eval.stats.intervals import Interval, jackknife_variance, student_t
from eval.suites.axes import Axis
from eval.suites.cases import PLAIN_ROLES
from eval.suites.fine_grained import is_erasure_target

GAP_RATES = ("UA", "IRA", "CRA")
DISTANCE_TITLES = {
    "UA": "UA, percentage points",
    "IRA": "IRA, percentage points",
    "CRA": "CRA, percentage points",
    "replacement_labels": "labels in the concept's place, total variation",
    "kid_different_noise": "KID of images from different noise",
    "nats": "denoiser divergence, nats per image, mean of both directions",
}
Record = dict[str, Any]


def model_pairs(models: Sequence[str]) -> list[tuple[str, str]]:
    """Return which models are compared: base and erased with every retrained model, and the retrained models with each other."""
    retrained = [name for name in models if name.startswith("retrained")]
    return [(name, retrained_name) for retrained_name in retrained for name in ("base", "erased")] + list(combinations(retrained, 2))


def model_distances(rows: Sequence[SampleRow], axis: Axis, targets: Sequence[str], excluded: Sequence[str], only: str = "") -> list[Record]:
    """Return differences of rates (Newcombe, paired) and of the labels in the concept's place, for each pair of models compared."""
    records = []
    for first, second in model_pairs(tuple(dict.fromkeys(row["model"] for row in rows))):
        differences = paired_differences(rows, axis, targets, excluded, only, first=first, second=second)
        for rate in GAP_RATES:
            if rate in differences:
                value = [differences[rate][key] for key in ("estimate", "low", "high")]
                records.append({"measure": rate, "first": first, "second": second, "value": value})
        target_rows = [row for row in rows if row["role"] in PLAIN_ROLES and is_erasure_target(row, axis, targets, only)]
        values = total_variation([r for r in target_rows if r["model"] == first], [r for r in target_rows if r["model"] == second], axis)
        records.append({"measure": "replacement_labels", "first": first, "second": second, "value": [round(v, 6) for v in values]})
    return records


def total_variation(first: Sequence[SampleRow], second: Sequence[SampleRow], axis: Axis) -> Interval:
    """Return half the sum of |p - q| over labels, p and q the shares of a judge's labels on two models' images.

    The interval is Student's t around the estimate, within [0, 1], by jackknife over prompts, which leaves out all images of a prompt at
    once; with one prompt it is [0, 1]. Finite counts bias the estimate upwards, for equal models too, and the interval is that of its own
    mean: compare it with the distance between two retrained models. A bootstrap adds the same bias again and can lie entirely above its
    estimate.
    """
    prompts = sorted({row["prompt"] for row in (*first, *second)})
    labels = sorted({row["scores"][axis]["label"] for row in (*first, *second)})
    counts = []
    for side in (first, second):
        label_counts = Counter((row["prompt"], row["scores"][axis]["label"]) for row in side)
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


def retrain_gaps(result: Mapping[str, Any]) -> list[Record]:
    """Return the distances of base and erased model to the retrained models, and of these to each other; empty without a retrained model.

    Several retrained models are averaged, bounds included: as wide as if all erred in one direction. `gap_closed` is the share of the gap
    between the base's distance and that between two retrained models that the erasure closed: 1 if the erased model is as near as retrained
    models are to each other, below 0 if it moved away from them.

    Args:
        result: of the audit.

    Returns:
        measure, title, prompts ("target" or "retained"), base, erased, between_retrained and gap_closed (each value, low, high, or None).
    """
    records_by_distance: dict[tuple[str, str], list[Record]] = {}
    for record in result.get("model_distances", []):
        prompts = "target" if record["measure"] in ("UA", "replacement_labels") else "retained"
        scale = 100 if record["measure"] in GAP_RATES else 1
        records_by_distance.setdefault((record["measure"], prompts), []).append(
            {**record, "value": [scale * value for value in record["value"]]}
        )
    for prompts, records in result["image_set_distances"].get("model_pairs", {}).items():
        for record in records:
            if record["value"] is not None:
                records_by_distance.setdefault(("kid_different_noise", prompts), []).append(
                    {**record, "value": [record[key] for key in ("value", "low", "high")]}
                )
    for record in result["denoiser_divergences"]:
        if "nats" in record and record["second"].startswith("retrained"):
            records_by_distance.setdefault(("nats", record["part"]), []).append({**record, "value": record["nats"]["mean"]})
    order = sorted(records_by_distance, key=lambda key: (key[1] != "target", list(DISTANCE_TITLES).index(key[0])))
    return [_retrain_gap(*key, records_by_distance[key]) for key in order]


def _retrain_gap(measure: str, prompts: str, records: Sequence[Record]) -> Record:
    distances: dict[str, list[float] | None] = {}
    for side in ("base", "erased", "between_retrained"):
        values = [record["value"] for record in records if _side_of(record) == side]
        distances[side] = [float(f"{value:.6g}") for value in np.mean(values, axis=0)] if values else None
    return {
        "measure": measure,
        "title": DISTANCE_TITLES[measure],
        "prompts": prompts,
        **distances,
        "gap_closed": _gap_closed(distances),
    }


def _side_of(record: Record) -> str:
    first: str = record["first"]
    return "between_retrained" if first.startswith("retrained") else first


def _gap_closed(distances: Mapping[str, Sequence[float] | None]) -> list[float] | None:
    """Return (d(base) - d(erased)) / (d(base) - d(between retrained)), and its extremes while each distance stays within its interval.

    So the bounds cover more than 95 %, since not all three err at once. None if the interval of the base reaches down to that between
    retrained models: then the base is not shown to be further from them than they are from each other, and there is no gap to close.
    """
    base, erased = distances["base"], distances["erased"]
    if base is None or erased is None:
        return None
    base_distance, erased_distance, retrained_distance = (
        _absolute_interval(distance) for distance in (base, erased, distances["between_retrained"] or (0.0, 0.0, 0.0))
    )
    if base_distance[1] <= retrained_distance[2]:
        return None
    shares = [(b - e) / (b - r) for b, e, r in product(base_distance, erased_distance, retrained_distance)]
    return [round(value, 4) for value in (shares[0], min(shares), max(shares))]


def _absolute_interval(distance: Sequence[float]) -> tuple[float, float, float]:
    """Return |d| and the bounds of |d|."""
    value, low, high = distance
    absolute_bounds = sorted((abs(low), abs(high)))
    return abs(value), 0.0 if low <= 0 <= high else absolute_bounds[0], absolute_bounds[1]


def describe_gap_closed(gaps: Sequence[Record]) -> list[str]:
    """Say in one sentence how much of the gap the erasure closed on the concept's own prompts, by every measure.

    The measures need not agree (docs/results/retrained.md).
    """
    target_gaps = [gap for gap in gaps if gap["prompts"] == "target" and gap["gap_closed"] is not None]
    if not target_gaps:
        return []
    has_retrained_distance = any(gap["between_retrained"] for gap in target_gaps)
    destination = (
        "as near as two models retrained without the concept are to each other"
        if has_retrained_distance
        else "a model retrained without the concept"
    )
    descriptions = []
    for gap in target_gaps:
        closed, low, high = (100 * share for share in gap["gap_closed"])
        descriptions.append(f"{closed:z.0f} % by {gap['title'].partition(',')[0]} ({format_span(low, high, 0)})")
    return [f"Of the gap between the base (0 %) and {destination} (100 %), the erased model closed {'; '.join(descriptions)}."]
