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

from eval.report.numbers import span
from eval.scoring.counting import Row, paired
from eval.stats.intervals import Interval, jackknife_variance, student
from eval.suites.cases import PLAIN
from eval.suites.fine_grained import meant
from eval.suites.suite import Axis

RATES = ("UA", "IRA", "CRA")
WORDS = {
    "UA": "UA, percentage points",
    "IRA": "IRA, percentage points",
    "CRA": "CRA, percentage points",
    "replaced": "what is read in the concept's place, total variation",
    "kid_different_noise": "KID of pictures of different noise",
    "nats": "denoiser divergence, nats per picture, mean of both ways",
}
Record = dict[str, Any]


def pairs(models: Sequence[str]) -> list[tuple[str, str]]:
    """Which models are compared: base and erased with every oracle, and the oracles with each other."""
    oracles = [name for name in models if name.startswith("oracle")]
    return [(name, oracle) for oracle in oracles for name in ("base", "erased")] + list(combinations(oracles, 2))


def gaps(rows: Sequence[Row], axis: Axis, targets: Sequence[str], apart: Sequence[str], only: str = "") -> list[Record]:
    """Differences of rates (Newcombe, paired) and of what is read in the concept's place, for every pair of models that is compared."""
    found = []
    for first, second in pairs(tuple(dict.fromkeys(row["model"] for row in rows))):
        tables = paired(rows, axis, targets, apart, only, first=first, second=second)
        for rate in RATES:
            if rate in tables:
                value = [tables[rate][key] for key in ("estimate", "low", "high")]
                found.append({"reading": rate, "first": first, "second": second, "value": value})
        asked = [row for row in rows if row["role"] in PLAIN and meant(row, axis, targets, only)]
        values = total_variation([r for r in asked if r["model"] == first], [r for r in asked if r["model"] == second], axis)
        found.append({"reading": "replaced", "first": first, "second": second, "value": [round(value, 6) for value in values]})
    return found


def total_variation(first: Sequence[Row], second: Sequence[Row], axis: Axis) -> Interval:
    """Half the sum of |p - q| over labels, p and q what a judge reads in pictures of two models.

    The interval is Student's about the estimate, within [0, 1], by jackknife over prompts, which leaves out all pictures of a prompt at
    once; one prompt alone says nothing of others. Finite counts bias the estimate upwards, for equal models too, and the interval is that
    of its own mean: read it beside the floor. A bootstrap adds the same bias once more and can lie wholly above its estimate.
    """
    prompts = sorted({row["prompt"] for row in (*first, *second)})
    labels = sorted({row["read"][axis]["label"] for row in (*first, *second)})
    counts = []
    for side in (first, second):
        read = Counter((row["prompt"], row["read"][axis]["label"]) for row in side)
        counts.append(np.array([[read[prompt, label] for label in labels] for prompt in prompts], dtype=float))
    found = float(_variation(*(side.sum(0, keepdims=True) for side in counts))[0])
    if len(prompts) < 2:
        return Interval(found, 0.0, 1.0)
    without = _variation(*(side.sum(0) - side for side in counts)).tolist()
    spread = student(len(prompts) - 1) * sqrt(jackknife_variance(without))
    return Interval(found, max(found - spread, 0.0), min(found + spread, 1.0))


def _variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    shares = [side / side.sum(1, keepdims=True).clip(min=1) for side in (p, q)]
    return np.abs(shares[0] - shares[1]).sum(1) / 2


def placed(result: Mapping[str, Any]) -> list[Record]:
    """Every reading as base to oracle, erased to oracle, and oracle to oracle; empty without an oracle.

    Several oracles are averaged, bounds as well: as wide as if all erred in one direction. `way` is the share of the distance from the
    base to the floor that the erasure went: 1 where it lies as near as oracles lie to each other, below 0 where it went away from them.

    Returns:
        reading, words, prompts ("target" or "kept"), base, erased, floor and way (each value, low, high, or None).
    """
    readings: dict[tuple[str, str], list[Record]] = {}
    for gap in result.get("gaps", []):
        part = "target" if gap["reading"] in ("UA", "replaced") else "kept"
        scale = 100 if gap["reading"] in RATES else 1
        readings.setdefault((gap["reading"], part), []).append({**gap, "value": [scale * value for value in gap["value"]]})
    for part, found in result["distances"].get("between", {}).items():
        for gap in found:
            if gap["value"] is not None:
                readings.setdefault(("kid_different_noise", part), []).append(
                    {**gap, "value": [gap[key] for key in ("value", "low", "high")]}
                )
    for gap in result["divergence"]:
        if "nats" in gap and gap["second"].startswith("oracle"):
            readings.setdefault(("nats", gap["prompts"]), []).append({**gap, "value": gap["nats"]["mean"]})
    order = sorted(readings, key=lambda key: (key[1] != "target", list(WORDS).index(key[0])))
    return [_placed(*key, readings[key]) for key in order]


def _placed(reading: str, part: str, found: Sequence[Record]) -> Record:
    sides: dict[str, list[float] | None] = {}
    for side in ("base", "erased", "floor"):
        mine = [gap["value"] for gap in found if (gap["first"] if not gap["first"].startswith("oracle") else "floor") == side]
        sides[side] = [float(f"{value:.6g}") for value in np.mean(mine, axis=0)] if mine else None
    return {"reading": reading, "words": WORDS[reading], "prompts": part, **sides, "way": _way(sides)}


def _way(sides: Mapping[str, Sequence[float] | None]) -> list[float] | None:
    """(d(base) - d(erased)) / (d(base) - floor), and its extremes while every distance stays within its own interval.

    So the bounds cover more than 95 %, since not all three err at once. None where the interval of the base reaches down to that of the
    floor: then base and oracles are no further apart than oracles, and nothing was to go.
    """
    base, erased = sides["base"], sides["erased"]
    if base is None or erased is None:
        return None
    away, left, floor = (_size(side) for side in (base, erased, sides["floor"] or (0.0, 0.0, 0.0)))
    if away[1] <= floor[2]:
        return None
    found = [(b - e) / (b - f) for b, e, f in product(away, left, floor)]
    return [round(value, 4) for value in (found[0], min(found), max(found))]


def _size(side: Sequence[float]) -> tuple[float, float, float]:
    """|d| and the bounds of |d|."""
    value, low, high = side
    sizes = sorted((abs(low), abs(high)))
    return abs(value), 0.0 if low <= 0 <= high else sizes[0], sizes[1]


def said(placing: Sequence[Record]) -> list[str]:
    """One sentence: how far the erasure went on the concept's own prompts, by every reading; they need not agree (docs/references.md)."""
    target = [place for place in placing if place["prompts"] == "target" and place["way"] is not None]
    if not target:
        return []
    floor = any(place["floor"] for place in target)
    end = "as near as two models that never saw the concept are to each other" if floor else "models that never saw the concept"
    ways = []
    for place in target:
        way, low, high = (100 * share for share in place["way"])
        ways.append(f"{way:z.0f} % by {place['words'].partition(',')[0]} ({span(low, high, 0)})")
    return [f"On the way from the base (0 %) to {end} (100 %), the erased model went {'; '.join(ways)}."]
