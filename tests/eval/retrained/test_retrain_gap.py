"""The retrain gap on planted rows: how much of the distance between the base and retrained models an erasure closes."""

import random
from dataclasses import replace

import pytest

from eval.records.audit_result import AuditResult
from eval.records.distances import (
    CountedMeasure,
    DenoiserDivergence,
    DivergenceDirections,
    ImageSetDistances,
    ModelDistance,
    ModelPairKid,
)
from eval.records.models import BASE, ERASED, AuditedModel, retrained_model
from eval.records.rows import SampleRow
from eval.retrained.retrain_gap import describe_gap_closed, model_distances, model_pairs, retrain_gaps, total_variation
from eval.stats.intervals import Interval
from tests.eval.factories import audit_result, label_scores, sample_row

FIVE = Interval(5.0, 4.0, 6.0)
FIRST, SECOND = retrained_model(1), retrained_model(2)


def planted_rows(model: AuditedModel, neon_labels: dict[str, int], retained: int = 8, others: int = 10) -> list[SampleRow]:
    """Images of neon with planted labels, from two prompts in turn, and others of sketch, of which `retained` show sketch."""
    labels = [label for label, k in neon_labels.items() for _ in range(k)] + ["sketch"] * retained + ["none"] * (others - retained)
    styles = ["neon"] * (len(labels) - others) + ["sketch"] * others
    return [
        sample_row(model, style, "boat", (label, "boat"), prompt=f"{style} {i % 2}", index=i)
        for i, (style, label) in enumerate(zip(styles, labels, strict=True))
    ]


def test_pairs_include_every_retrained_model() -> None:
    assert model_pairs((BASE, ERASED)) == []
    assert model_pairs((BASE, ERASED, FIRST)) == [(BASE, FIRST), (ERASED, FIRST)]
    assert model_pairs((BASE, ERASED, FIRST, SECOND))[-1] == (FIRST, SECOND)
    assert len(model_pairs((BASE, ERASED, FIRST, SECOND))) == 5


def test_total_variation_is_half_the_sum_of_differences() -> None:
    base, erased = (
        planted_rows(model, labels, others=0, retained=0)
        for model, labels in ((BASE, {"neon": 20}), (ERASED, {"neon": 2, "sketch": 12, "glass": 6}))
    )
    variation = total_variation(base, erased, "style")
    assert variation.estimate == pytest.approx((abs(1 - 0.1) + 0.6 + 0.3) / 2)
    assert variation.low <= variation.estimate <= variation.high
    assert total_variation(base, base, "style") == (0, 0, 0)


def test_the_interval_of_a_total_variation_is_over_prompts() -> None:
    """One of ten prompts changed wholly: 0 or 1/9 without each, so the standard error is that of a mean, 0.1; t of 9 is 2.262."""
    base = [sample_row(BASE, "neon", "boat", ("neon", None), prompt=str(i)) for i in range(10) for _ in range(5)]
    erased = [replace(row, scores=label_scores("sketch" if row.prompt == "0" else "neon", None)) for row in base]
    assert total_variation(base, erased, "style") == pytest.approx((0.1, 0, 0.1 + 2.2621572 * 0.1), rel=1e-6)
    assert total_variation(base[:5], erased[:5], "style") == (1, 0, 1)  # one prompt says nothing about others


def test_the_interval_of_a_total_variation_holds_its_estimate_and_the_mean() -> None:
    """Equal models, 50 prompts, 9 labels: a bootstrap interval lay above its estimate in 7% of 400 samples, and held the mean in 88%."""
    rng = random.Random(0)

    def random_rows() -> list[SampleRow]:
        return [sample_row(BASE, "neon", "boat", (str(rng.randrange(9)), None), prompt=str(i)) for i in range(50) for _ in range(2)]

    variations = [total_variation(random_rows(), random_rows(), "style") for _ in range(100)]
    mean = sum(interval.estimate for interval in variations) / 100
    assert all(interval.low <= interval.estimate <= interval.high for interval in variations)
    assert sum(interval.low <= mean <= interval.high for interval in variations) >= 93


def test_rate_distances_are_the_retrained_models_rate_minus_the_others() -> None:
    rows = planted_rows(BASE, {"neon": 20}) + planted_rows(ERASED, {"neon": 5, "sketch": 15})
    rows += planted_rows(FIRST, {"sketch": 20}, retained=9)
    distances = {(row.measure, row.first): row.value for row in model_distances(rows, "style", ["neon"], [])}
    assert distances["UA", BASE][0] == pytest.approx(1) and distances["UA", ERASED][0] == pytest.approx(0.25)
    assert distances["IRA", BASE][0] == pytest.approx(0.1) and distances["CRA", BASE][0] == 0
    assert distances["replacement_labels", ERASED][0] == pytest.approx(0.25)
    assert all(low <= value <= high for value, low, high in distances.values())


def planted_result(base: float, erased: float, between: float | None, spread: float = 0.01) -> AuditResult:
    """The KID of the base and the erased model to retrained models, and the one between two of these; None: there is one only."""

    def distance(first: AuditedModel, second: AuditedModel, value: float) -> ModelPairKid:
        return ModelPairKid(first=first, second=second, value=value, low=value - spread, high=value + spread)

    pairs = [distance(BASE, FIRST, base), distance(ERASED, FIRST, erased)]
    if between is not None:
        pairs += [distance(BASE, SECOND, base), distance(ERASED, SECOND, erased), distance(FIRST, SECOND, between)]
    distances = ImageSetDistances(extractor={}, parts={}, model_pairs={"target": tuple(pairs)})
    nats = DivergenceDirections(forward=FIVE, backward=FIVE, mean=FIVE)
    divergence = DenoiserDivergence(part="retained", first=BASE, second=ERASED, n=2, nats=nats)
    return audit_result(image_set_distances=distances, denoiser_divergences=(divergence,))


def test_the_gap_ends_at_the_distance_between_two_retrained_models() -> None:
    (gap,) = retrain_gaps(planted_result(1.0, 0.2, 0.1))
    assert gap.base == pytest.approx([1.0, 0.99, 1.01]) and gap.between_retrained == pytest.approx([0.1, 0.09, 0.11])
    assert gap.gap_closed == pytest.approx(
        [(1.0 - 0.2) / (1.0 - 0.1), (0.99 - 0.21) / (0.99 - 0.09), (1.01 - 0.19) / (1.01 - 0.11)], abs=1e-4
    )
    (text,) = describe_gap_closed([gap])
    assert "closed 89% by KID of images from different noise (86 to 92)" in text and "two models retrained without the concept" in text
    assert retrain_gaps(planted_result(1.0, 1.5, 0.1))[0].gap_closed[2] < 0
    assert retrain_gaps(planted_result(1.0, 0.0, None))[0].gap_closed == pytest.approx([1, 1 - 0.01 / 0.99, 1], abs=1e-4)


def test_the_bounds_hold_on_both_sides_of_the_retrained_models() -> None:
    """An erasure nearer to them than they are to each other has its extremes elsewhere: all combinations of the bounds stay inside."""
    for base, erased, between in ((1.0, 0.5, 0.2), (1.0, 0.1, 0.3), (0.5, 0.9, 0.1)):
        (gap,) = retrain_gaps(planted_result(base, erased, between, spread=0.05))
        closed = [
            (b - e) / (b - f)
            for b in (base - 0.05, base + 0.05)
            for e in (erased - 0.05, erased + 0.05)
            for f in (between - 0.05, between + 0.05)
        ]
        assert gap.gap_closed[1:] == pytest.approx([min(closed), max(closed)], abs=1e-4)


def test_a_base_that_may_be_as_near_as_two_retrained_models_has_no_gap() -> None:
    assert retrain_gaps(planted_result(0.3, 0.2, 0.2, spread=0.05))[0].gap_closed is None
    assert retrain_gaps(planted_result(0.3, 0.2, 0.2, spread=0.04))[0].gap_closed is not None


def test_rates_are_in_points_and_every_measure_is_under_its_prompts() -> None:
    measures: tuple[CountedMeasure, ...] = ("UA", "replacement_labels", "IRA", "CRA")
    distances = [
        ModelDistance(measure=measure, first=model, second=FIRST, value=Interval(value, value - 0.1, value + 0.1))
        for measure in measures
        for model, value in ((BASE, 0.5), (ERASED, 0.25))
    ]
    gaps = retrain_gaps(replace(planted_result(1.0, 0.2, 0.1), model_distances=tuple(distances)))
    assert {gap.measure: (gap.prompts, gap.base[0], gap.gap_closed[0]) for gap in gaps} == {
        "UA": ("target", 50, 0.5),
        "replacement_labels": ("target", 0.5, 0.5),
        "kid_different_noise": ("target", 1, 0.8889),
        "IRA": ("retained", 50, 0.5),
        "CRA": ("retained", 50, 0.5),
    }
    parts = [part.partition(" (")[0] for part in describe_gap_closed(gaps)[0].partition(" closed ")[2].split("; ")]
    # by every measure, since one alone may mislead
    assert parts == ["50% by UA", "50% by labels in the concept's place", "89% by KID of images from different noise"]
    assert " closed 50% by UA (" in describe_gap_closed(gaps[:1])[0]


def test_where_base_and_retrained_models_do_not_differ_there_is_no_gap() -> None:
    (gap,) = retrain_gaps(planted_result(0.005, 0.2, 0.0))
    assert gap.gap_closed is None and describe_gap_closed([gap]) == []
    assert retrain_gaps(planted_result(0.1, 0.2, 0.3))[0].gap_closed is None


def test_without_a_retrained_model_there_is_no_gap() -> None:
    assert retrain_gaps(audit_result()) == ()
