import random
from collections import Counter
from math import comb

import pytest

from erasure.errors import UserError
from eval.statistics import clopper_pearson, holm, mcnemar, paired_difference, wilson


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(30, 142, 15.2, 28.6), (0, 50, 0.0, 7.1), (0, 142, 0.0, 2.6), (1, 50, 0.4, 10.5), (50, 50, 92.9, 100.0)],
)
def test_wilson_against_published_values(k: int, n: int, low: float, high: float) -> None:
    interval = wilson(k, n)
    assert round(100 * interval.low, 1) == low
    assert round(100 * interval.high, 1) == high


def test_wilson_refuses_what_is_no_rate() -> None:
    for k, n in ((1, 0), (3, 2), (-1, 5)):
        with pytest.raises(UserError, match="k="):
            wilson(k, n)


def test_mcnemar_is_the_two_sided_binomial() -> None:
    assert mcnemar(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(0, 0) == 1.0


@pytest.mark.parametrize("cells", [(0.6, 0.2, 0.1, 0.1), (0.9, 0.08, 0.01, 0.01), (0.3, 0.2, 0.2, 0.3)])
def test_paired_interval_covers_the_truth_as_often_as_it_says(cells: tuple[float, ...]) -> None:
    rng = random.Random(0)
    truth, hits, draws = cells[1] - cells[2], 0, 3000
    for _ in range(draws):
        counts = Counter(rng.choices(range(4), cells, k=80))
        interval = paired_difference(*(counts[i] for i in range(4)))
        hits += interval.low <= truth <= interval.high
    assert 0.93 < hits / draws < 0.985


def test_identical_models_differ_by_nothing() -> None:
    interval = paired_difference(40, 0, 0, 10)
    assert interval.estimate == 0
    assert interval.low < 0 < interval.high


@pytest.mark.parametrize(("k", "n", "low", "high"), [(0, 50, 0.0, 7.1), (1, 50, 0.1, 10.6), (30, 142, 14.7, 28.8), (50, 50, 92.9, 100.0)])
def test_the_exact_interval_against_tables(k: int, n: int, low: float, high: float) -> None:
    interval = clopper_pearson(k, n)
    assert round(100 * interval.low, 1) == low
    assert round(100 * interval.high, 1) == high


@pytest.mark.parametrize(("n", "p"), [(30, 0.01), (50, 0.05), (142, 0.2)])
def test_the_exact_interval_never_covers_less_than_it_says(n: int, p: float) -> None:
    covered = sum(
        comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if clopper_pearson(k, n).low <= p <= clopper_pearson(k, n).high
    )
    assert 0.95 <= covered <= 1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
