"""Where an erasure lies between its base and models that never saw the concept, on planted rows."""

import random
from typing import Any

import pytest

from eval.retrained.retrain_gap import describe_gap_closed, model_distances, model_pairs, retrain_gaps, total_variation

Row = dict[str, Any]


def rows(model: str, read: dict[str, int], kept: int = 8, of: int = 10) -> list[Row]:
    """Pictures that ask for neon and are read as planted, two prompts in turn; and ten of sketch, of which `kept` are read as asked."""
    labels = [label for label, k in read.items() for _ in range(k)] + ["sketch"] * kept + ["none"] * (of - kept)
    asked = ["neon"] * (len(labels) - of) + ["sketch"] * of
    return [
        {
            "model": model,
            "role": "grid",
            "variant": "",
            "prompt": f"{style} {i % 2}",
            "style": style,
            "object": "boat",
            "index": i,
            "read": {"style": {"label": label}, "object": {"label": "boat"}},
        }
        for i, (style, label) in enumerate(zip(asked, labels, strict=True))
    ]


def test_pairs_are_of_oracles() -> None:
    assert model_pairs(("base", "erased")) == []
    assert model_pairs(("base", "erased", "oracle")) == [("base", "oracle"), ("erased", "oracle")]
    assert model_pairs(("base", "erased", "oracle", "oracle-2"))[-1] == ("oracle", "oracle-2")
    assert len(model_pairs(("base", "erased", "oracle", "oracle-2"))) == 5


def test_total_variation_is_half_the_sum_of_differences() -> None:
    base, erased = rows("base", {"neon": 20}, of=0, kept=0), rows("erased", {"neon": 2, "sketch": 12, "glass": 6}, of=0, kept=0)
    found = total_variation(base, erased, "style")
    assert found.estimate == pytest.approx((abs(1 - 0.1) + 0.6 + 0.3) / 2)
    assert found.low <= found.estimate <= found.high
    assert total_variation(base, base, "style") == (0, 0, 0)


def test_the_interval_of_a_variation_is_of_95_percent_over_prompts() -> None:
    """One of ten prompts changed wholly: without each, 0 or 1/9, so the error is that of a mean, 0.3 / 3; t of 9 is 2.262."""
    base = [{"prompt": str(i), "read": {"style": {"label": "neon"}}} for i in range(10) for _ in range(5)]
    erased = [{**r, "read": {"style": {"label": "sketch" if r["prompt"] == "0" else "neon"}}} for r in base]
    assert total_variation(base, erased, "style") == pytest.approx((0.1, 0, 0.1 + 2.2621572 * 0.1), rel=1e-6)
    assert total_variation(base[:5], erased[:5], "style") == (1, 0, 1)  # of one prompt nothing follows for others


def test_the_interval_of_a_variation_holds_its_estimate_and_its_mean() -> None:
    """Equal models, 50 prompts, 9 labels: a bootstrap's interval lay above its estimate in 7 % of 400 draws, and held the mean in 88 %."""
    rng = random.Random(0)

    def drawn() -> list[dict[str, Any]]:
        return [{"prompt": str(i), "read": {"style": {"label": str(rng.randrange(9))}}} for i in range(50) for _ in range(2)]

    found = [total_variation(drawn(), drawn(), "style") for _ in range(100)]
    mean = sum(interval.estimate for interval in found) / 100
    assert all(interval.low <= interval.estimate <= interval.high for interval in found)
    assert sum(interval.low <= mean <= interval.high for interval in found) >= 93


def test_gaps_are_the_oracles_rate_minus_the_others() -> None:
    models = rows("base", {"neon": 20}) + rows("erased", {"neon": 5, "sketch": 15}) + rows("oracle", {"sketch": 20}, kept=9)
    found = {(gap["reading"], gap["first"]): gap["value"] for gap in model_distances(models, "style", ["neon"], [])}
    assert found["UA", "base"][0] == pytest.approx(1) and found["UA", "erased"][0] == pytest.approx(0.25)
    assert found["IRA", "base"][0] == pytest.approx(0.1) and found["CRA", "base"][0] == 0
    assert found["replaced", "erased"][0] == pytest.approx(0.25)
    assert all(low <= value <= high for value, low, high in found.values())


def result(base: float, erased: float, floor: float | None, spread: float = 0.01) -> dict[str, Any]:
    def gap(first: str, second: str, value: float) -> dict[str, Any]:
        return {"first": first, "second": second, "value": value, "low": value - spread, "high": value + spread}

    between = [gap("base", "oracle", base), gap("erased", "oracle", erased)]
    if floor is not None:
        between += [gap("base", "oracle-2", base), gap("erased", "oracle-2", erased), gap("oracle", "oracle-2", floor)]
    nats = {"prompts": "kept", "first": "base", "second": "erased", "n": 2, "nats": {"mean": [5.0, 4.0, 6.0]}}
    return {"gaps": [], "distances": {"between": {"target": between}}, "divergence": [nats]}


def test_the_way_ends_at_the_floor() -> None:
    (place,) = retrain_gaps(result(1.0, 0.2, 0.1))
    assert place["base"] == pytest.approx([1.0, 0.99, 1.01]) and place["floor"] == pytest.approx([0.1, 0.09, 0.11])
    assert place["way"] == pytest.approx(
        [(1.0 - 0.2) / (1.0 - 0.1), (0.99 - 0.21) / (0.99 - 0.09), (1.01 - 0.19) / (1.01 - 0.11)], abs=1e-4
    )
    assert (
        "89 % by KID of pictures of different noise (86 to 92)" in describe_gap_closed([place])[0]
        and "two models that never saw" in describe_gap_closed([place])[0]
    )
    assert retrain_gaps(result(1.0, 1.5, 0.1))[0]["way"][2] < 0
    assert retrain_gaps(result(1.0, 0.0, None))[0]["way"] == pytest.approx([1, 1 - 0.01 / 0.99, 1], abs=1e-4)


def test_the_bounds_of_a_way_hold_whatever_side_of_the_floor_the_erasure_ends_on() -> None:
    """Beyond the floor the corners lie elsewhere than before it: every combination of the three intervals stays inside."""
    for base, erased, floor in ((1.0, 0.5, 0.2), (1.0, 0.1, 0.3), (0.5, 0.9, 0.1)):
        (place,) = retrain_gaps(result(base, erased, floor, spread=0.05))
        ways = [
            (b - e) / (b - f)
            for b in (base - 0.05, base + 0.05)
            for e in (erased - 0.05, erased + 0.05)
            for f in (floor - 0.05, floor + 0.05)
        ]
        assert place["way"][1:] == pytest.approx([min(ways), max(ways)], abs=1e-4)


def test_a_base_whose_interval_reaches_the_floor_has_no_way() -> None:
    assert retrain_gaps(result(0.3, 0.2, 0.2, spread=0.05))[0]["way"] is None
    assert retrain_gaps(result(0.3, 0.2, 0.2, spread=0.04))[0]["way"] is not None


def test_rates_are_placed_in_points_and_every_reading_under_its_prompts() -> None:
    sides = [{"first": side, "second": "oracle", "value": [v, v - 0.1, v + 0.1]} for side, v in (("base", 0.5), ("erased", 0.25))]
    gaps = [{"reading": reading, **side} for reading in ("UA", "replaced", "IRA", "CRA") for side in sides]
    found = retrain_gaps({**result(1.0, 0.2, 0.1), "gaps": gaps})
    assert {p["reading"]: (p["prompts"], p["base"][0], p["way"][0]) for p in found} == {
        "UA": ("target", 50, 0.5),
        "replaced": ("target", 0.5, 0.5),
        "kid_different_noise": ("target", 1, 0.8889),
        "IRA": ("kept", 50, 0.5),
        "CRA": ("kept", 50, 0.5),
    }
    ways = [
        part.partition(" (")[0] for part in describe_gap_closed(found)[0].partition(" went ")[2].split("; ")
    ]  # by every reading: one alone may mislead
    assert ways == ["50 % by UA", "50 % by what is read in the concept's place", "89 % by KID of pictures of different noise"]
    assert " went 50 % by UA (" in describe_gap_closed(found[:1])[0]


def test_where_base_and_oracles_do_not_differ_there_is_no_way() -> None:
    (place,) = retrain_gaps(result(0.005, 0.2, 0.0))
    assert place["way"] is None and describe_gap_closed([place]) == []
    assert retrain_gaps(result(0.1, 0.2, 0.3))[0]["way"] is None


def test_without_an_oracle_nothing_is_placed() -> None:
    assert retrain_gaps({"distances": {}, "divergence": []}) == []
