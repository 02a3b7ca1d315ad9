"""Where an erasure lies between its base and models that never saw the concept: reading by reading, each beside its floor.

A reading is a distance of two models under the same prompts and noise. Against a model that never saw the concept it says how far an
erased model still is from never having known; two such models apart from each other are the floor, which no erasure can be asked to beat.
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
from eval.suites.cases import PLAIN_ROLES
from eval.suites.fine_grained import is_erasure_target
from eval.suites.suite import Axis

GAP_RATES = ("UA", "IRA", "CRA")
DISTANCE_TITLES = {
    "UA": "UA, percentage points",
    "IRA": "IRA, percentage points",
    "CRA": "CRA, percentage points",
    "replaced": "what is read in the concept's place, total variation",
    "kid_different_noise": "KID of pictures of different noise",
    "nats": "denoiser divergence, nats per picture, mean of both ways",
}
Record = dict[str, Any]


def model_pairs(models: Sequence[str]) -> list[tuple[str, str]]:
    """Which models are compared: base and erased with every oracle, and the oracles with each other."""
    retrained = [name for name in models if name.startswith("oracle")]
    return [(name, retrained_name) for retrained_name in retrained for name in ("base", "erased")] + list(combinations(retrained, 2))


def model_distances(rows: Sequence[SampleRow], axis: Axis, targets: Sequence[str], excluded: Sequence[str], only: str = "") -> list[Record]:
    """Differences of rates (Newcombe, paired) and of what is read in the concept's place, for every pair of models that is compared."""
    records = []
    for first, second in model_pairs(tuple(dict.fromkeys(row["model"] for row in rows))):
        differences = paired_differences(rows, axis, targets, excluded, only, first=first, second=second)
        for rate in GAP_RATES:
            if rate in differences:
                value = [differences[rate][key] for key in ("estimate", "low", "high")]
                records.append({"reading": rate, "first": first, "second": second, "value": value})
        target_rows = [row for row in rows if row["role"] in PLAIN_ROLES and is_erasure_target(row, axis, targets, only)]
        values = total_variation([r for r in target_rows if r["model"] == first], [r for r in target_rows if r["model"] == second], axis)
        records.append({"reading": "replaced", "first": first, "second": second, "value": [round(value, 6) for value in values]})
    return records


def total_variation(first: Sequence[SampleRow], second: Sequence[SampleRow], axis: Axis) -> Interval:
    """Half the sum of |p - q| over labels, p and q what a judge reads in pictures of two models.

    The interval is Student's about the estimate, within [0, 1], by jackknife over prompts, which leaves out all pictures of a prompt at
    once; one prompt alone says nothing of others. Finite counts bias the estimate upwards, for equal models too, and the interval is that
    of its own mean: read it beside the floor. A bootstrap adds the same bias once more and can lie wholly above its estimate.
    """
    prompts = sorted({row["prompt"] for row in (*first, *second)})
    labels = sorted({row["read"][axis]["label"] for row in (*first, *second)})
    counts = []
    for side in (first, second):
        label_counts = Counter((row["prompt"], row["read"][axis]["label"]) for row in side)
        counts.append(np.array([[label_counts[prompt, label] for label in labels] for prompt in prompts], dtype=float))
    estimate = float(_total_variations(*(side.sum(0, keepdims=True) for side in counts))[0])
    if len(prompts) < 2:
        return Interval(estimate, 0.0, 1.0)
    leave_one_out = _total_variations(*(side.sum(0) - side for side in counts)).tolist()
    half_width = student_t(len(prompts) - 1) * sqrt(jackknife_variance(leave_one_out))
    return Interval(estimate, max(estimate - half_width, 0.0), min(estimate + half_width, 1.0))


def _total_variations(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    shares = [side / side.sum(1, keepdims=True).clip(min=1) for side in (p, q)]
    return np.abs(shares[0] - shares[1]).sum(1) / 2


def retrain_gaps(result: Mapping[str, Any]) -> list[Record]:
    """Every reading as base to oracle, erased to oracle, and oracle to oracle; empty without an oracle.

    Several oracles are averaged, bounds as well: as wide as if all erred in one direction. `way` is the share of the distance from the
    base to the floor that the erasure went: 1 where it lies as near as oracles lie to each other, below 0 where it went away from them.

    Returns:
        reading, words, prompts ("target" or "kept"), base, erased, floor and way (each value, low, high, or None).
    """
    records_by_distance: dict[tuple[str, str], list[Record]] = {}
    for record in result.get("gaps", []):
        prompts = "target" if record["reading"] in ("UA", "replaced") else "kept"
        scale = 100 if record["reading"] in GAP_RATES else 1
        records_by_distance.setdefault((record["reading"], prompts), []).append(
            {**record, "value": [scale * value for value in record["value"]]}
        )
    for prompts, records in result["distances"].get("between", {}).items():
        for record in records:
            if record["value"] is not None:
                records_by_distance.setdefault(("kid_different_noise", prompts), []).append(
                    {**record, "value": [record[key] for key in ("value", "low", "high")]}
                )
    for record in result["divergence"]:
        if "nats" in record and record["second"].startswith("oracle"):
            records_by_distance.setdefault(("nats", record["prompts"]), []).append({**record, "value": record["nats"]["mean"]})
    order = sorted(records_by_distance, key=lambda key: (key[1] != "target", list(DISTANCE_TITLES).index(key[0])))
    return [_retrain_gap(*key, records_by_distance[key]) for key in order]


def _retrain_gap(distance: str, prompts: str, records: Sequence[Record]) -> Record:
    sides: dict[str, list[float] | None] = {}
    for side in ("base", "erased", "floor"):
        values = [
            record["value"] for record in records if (record["first"] if not record["first"].startswith("oracle") else "floor") == side
        ]
        sides[side] = [float(f"{value:.6g}") for value in np.mean(values, axis=0)] if values else None
    return {"reading": distance, "words": DISTANCE_TITLES[distance], "prompts": prompts, **sides, "way": _gap_closed(sides)}


def _gap_closed(sides: Mapping[str, Sequence[float] | None]) -> list[float] | None:
    """(d(base) - d(erased)) / (d(base) - floor), and its extremes while every distance stays within its own interval.

    So the bounds cover more than 95 %, since not all three err at once. None where the interval of the base reaches down to that of the
    floor: then base and oracles are no further apart than oracles, and nothing was to go.
    """
    base, erased = sides["base"], sides["erased"]
    if base is None or erased is None:
        return None
    base_distance, erased_distance, retrained_distance = (
        _absolute_interval(side) for side in (base, erased, sides["floor"] or (0.0, 0.0, 0.0))
    )
    if base_distance[1] <= retrained_distance[2]:
        return None
    shares = [(b - e) / (b - f) for b, e, f in product(base_distance, erased_distance, retrained_distance)]
    return [round(value, 4) for value in (shares[0], min(shares), max(shares))]


def _absolute_interval(side: Sequence[float]) -> tuple[float, float, float]:
    """|d| and the bounds of |d|."""
    value, low, high = side
    absolute_bounds = sorted((abs(low), abs(high)))
    return abs(value), 0.0 if low <= 0 <= high else absolute_bounds[0], absolute_bounds[1]


def describe_gap_closed(gaps: Sequence[Record]) -> list[str]:
    """One sentence: how far the erasure went on the concept's own prompts, by every reading; they need not agree (docs/references.md)."""
    target_gaps = [gap for gap in gaps if gap["prompts"] == "target" and gap["way"] is not None]
    if not target_gaps:
        return []
    has_retrained_distance = any(gap["floor"] for gap in target_gaps)
    destination = (
        "as near as two models that never saw the concept are to each other"
        if has_retrained_distance
        else "models that never saw the concept"
    )
    descriptions = []
    for gap in target_gaps:
        closed, low, high = (100 * share for share in gap["way"])
        descriptions.append(f"{closed:z.0f} % by {gap['words'].partition(',')[0]} ({format_span(low, high, 0)})")
    return [f"On the way from the base (0 %) to {destination} (100 %), the erased model went {'; '.join(descriptions)}."]
