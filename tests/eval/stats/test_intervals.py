"""Intervals and tests against tables, closed forms and simulated coverage."""

import random
from collections import Counter
from collections.abc import Callable
from math import comb

import pytest

from erasure.errors import UserError
from eval.scoring.rates import clustered_rate, counted_rate
from eval.stats.bootstrap import cluster_bootstrap
from eval.stats.clusters import effective_size
from eval.stats.intervals import (
    DetectorCounts,
    Interval,
    clopper_pearson,
    holm,
    incomplete_beta,
    jackknife_variance,
    mcnemar,
    paired_difference,
    rate_interval,
    rogan_gladen,
    single_attempt_rate,
    student_t,
    wilson,
)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(30, 142, 15.2, 28.6), (0, 50, 0.0, 7.1), (0, 142, 0.0, 2.6), (1, 50, 0.4, 10.5), (50, 50, 92.9, 100.0)],
)
def test_wilson_against_published_values(k: int, n: int, low: float, high: float) -> None:
    interval = wilson(k, n)
    assert round(100 * interval.low, 1) == low
    assert round(100 * interval.high, 1) == high


def test_wilson_refuses_counts_without_a_rate() -> None:
    for k, n in ((1, 0), (3, 2), (-1, 5)):
        with pytest.raises(UserError, match="k="):
            wilson(k, n)


def test_mcnemar_is_the_two_sided_binomial() -> None:
    assert mcnemar(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(0, 0) == 1.0


@pytest.mark.parametrize("cells", [(0.6, 0.2, 0.1, 0.1), (0.9, 0.08, 0.01, 0.01), (0.3, 0.2, 0.2, 0.3)])
def test_the_paired_interval_has_its_coverage(cells: tuple[float, ...]) -> None:
    rng = random.Random(0)
    truth, hits, samples = cells[1] - cells[2], 0, 3000
    for _ in range(samples):
        counts = Counter(rng.choices(range(4), cells, k=80))
        interval = paired_difference(*(counts[i] for i in range(4)))
        hits += interval.low <= truth <= interval.high
    assert 0.93 < hits / samples < 0.985


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
def test_the_exact_interval_has_at_least_its_coverage(n: int, p: float) -> None:
    covered = sum(
        comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if clopper_pearson(k, n).low <= p <= clopper_pearson(k, n).high
    )
    assert 0.95 <= covered <= 1


def test_the_incomplete_beta_is_the_binomial_tail() -> None:
    """P(X >= k) = I_p(k, n - k + 1) (Abramowitz and Stegun, 26.5.24), summed by hand; and I_x(a, 1) = x^a where a is not a whole number."""
    for n, k, p in [(5, 1, 0.01), (30, 29, 0.999), (142, 47, 0.3), (142, 141, 0.9), (400, 200, 0.5)]:
        tail = sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
        assert incomplete_beta(p, k, n - k + 1) == pytest.approx(tail, abs=1e-11)
    for x, a in [(0.2, 0.5), (0.9, 17.3), (0.999, 250.5)]:
        assert incomplete_beta(x, a, 1) == pytest.approx(x**a)
    assert clopper_pearson(900_100, 1_000_000).low == pytest.approx(0.9001 - 1.96 * (0.9001 * 0.0999 / 1e6) ** 0.5, abs=2e-6)


def test_students_quantiles_are_the_tables() -> None:
    """Table 26.10 of Abramowitz and Stegun, to its three decimals."""
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 10: 2.228, 29: 2.045, 120: 1.980}
    assert {df: round(student_t(df), 3) for df in table} == table
    assert student_t(10_000) == pytest.approx(1.95996, abs=1e-3) and round(student_t(5, 0.99), 3) == 4.032


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def coverage(interval: Callable[[int, int], Interval], n: int, p: float) -> float:
    """Probability that the interval of a Binomial(n, p) count holds p, summed over all counts of relevant probability."""
    covered = 0.0
    for k in range(n + 1):
        mass = comb(n, k) * p**k * (1 - p) ** (n - k)
        if mass > 1e-6:
            bounds = interval(k, n)
            covered += mass * (bounds.low <= p <= bounds.high)
    return covered


@pytest.mark.parametrize(
    ("n", "p", "score", "exact"),
    [
        (30, 0.01, 0.964, 0.997),
        (50, 0.01, 0.911, 0.986),
        (50, 0.05, 0.962, 0.988),
        (142, 0.01, 0.945, 0.985),
        (142, 0.05, 0.949, 0.963),
        (142, 0.20, 0.942, 0.965),
        (1000, 0.01, 0.964, 0.976),
    ],
)
def test_coverage_of_both_intervals_at_low_rates(n: int, p: float, score: float, exact: float) -> None:
    """Wilson is right on average and may be below 95%; Clopper-Pearson never is, so every rate uses it."""
    assert round(coverage(wilson, n, p), 3) == score
    assert round(coverage(clopper_pearson, n, p), 3) == exact


def clustered_interval(successes: list[int], trials: list[int]) -> Interval:
    """The interval of a rate with several images per prompt."""
    return rate_interval(sum(successes), sum(trials), effective_size(successes, trials))


@pytest.mark.parametrize("k", [2, 5])
def test_copies_of_every_image_add_no_evidence(k: int) -> None:
    once = [1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]
    assert cluster_bootstrap([[float(x)] * k for x in once]) == cluster_bootstrap([[float(x)] for x in once])
    assert effective_size([k * x for x in once], [k] * 12) == pytest.approx(12)
    assert clustered_interval([k * x for x in once], [k] * 12) == pytest.approx(clopper_pearson(3, 12))
    assert clopper_pearson(3 * k, 12 * k).high < clustered_interval([k * x for x in once], [k] * 12).high - 0.02


def test_independent_clusters_count_as_single_images() -> None:
    rng = random.Random(0)
    successes = [sum(rng.random() < 0.3 for _ in range(4)) for _ in range(400)]
    assert 1400 < effective_size(successes, [4] * 400) <= 1600
    assert effective_size([1, 0, 1, 1, 0], [1] * 5) == 5
    assert clustered_interval([1, 0, 1, 1, 0], [1] * 5) == pytest.approx(clopper_pearson(3, 5))
    assert clustered_rate([[True], [False], [True]]) == counted_rate(2, 3)


def test_intraclass_correlation_by_hand() -> None:
    """Three prompts of four images with 4, 2 and 0 successes: mean squares 1 and 1/9, so rho = (1 - 1/9) / (1 + 3/9) = 2/3."""
    assert effective_size([4, 2, 0], [4, 4, 4]) == pytest.approx(12 / (1 + 3 * 2 / 3))


def test_clusters_with_all_or_no_successes() -> None:
    assert clustered_interval([0] * 10, [5] * 10) == pytest.approx(clopper_pearson(0, 10))
    assert clustered_interval([5] * 10, [5] * 10) == pytest.approx(clopper_pearson(10, 10))
    assert effective_size([2], [5]) == 1
    for successes, trials in (([], []), ([1, 2], [1]), ([3], [2]), ([0, 0], [0, 2])):
        with pytest.raises(UserError, match="clusters need"):
            effective_size(successes, trials)
    for clusters in ([[1.0, 0.0]], [[1.0], []]):
        with pytest.raises(UserError, match="two clusters"):
            cluster_bootstrap(clusters)


@pytest.mark.parametrize("interval", ["exact", "bootstrap"])
def test_cluster_intervals_cover_the_truth_where_prompts_differ(interval: str) -> None:
    """Every prompt has its own rate from Beta(1, 1.5) with mean 0.4, and five images. A pooled interval covers less than 95%."""
    rng, samples, covered, pooled = random.Random(1), 120, 0, 0
    for i in range(samples):
        rates = [rng.betavariate(1, 1.5) for _ in range(40)]
        outcomes = [[float(rng.random() < rate) for _ in range(5)] for rate in rates]
        successes = [int(sum(cluster)) for cluster in outcomes]
        bounds = clustered_interval(successes, [5] * 40) if interval == "exact" else cluster_bootstrap(outcomes, resamples=400, seed=i)
        covered += bounds.low <= 0.4 <= bounds.high
        naive = wilson(sum(successes), 200)
        pooled += naive.low <= 0.4 <= naive.high
    assert 0.9 <= covered / samples <= 0.99
    assert pooled / samples < 0.85


def test_the_bootstrap_depends_on_its_seed() -> None:
    rng = random.Random(0)
    clusters = [[rng.random() for _ in range(1 + i % 3)] for i in range(15)]
    first = cluster_bootstrap(clusters, resamples=500, seed=1)
    assert first == cluster_bootstrap(clusters, resamples=500, seed=1)
    assert first != cluster_bootstrap(clusters, resamples=500, seed=2)
    assert first.estimate == pytest.approx(sum(sum(c) for c in clusters) / 30)
    assert first.low < first.estimate < first.high


PERFECT = DetectorCounts(10**7, 10**7, 10**7, 10**7)


def test_a_perfect_detector_needs_no_correction() -> None:
    rate = rogan_gladen(30, 142, PERFECT)
    assert rate.estimate == 30 / 142
    assert rate.youden == 1
    assert rate.warning == ""
    assert (rate.low, rate.high) == pytest.approx(tuple(wilson(30, 142))[1:], abs=0.01)


def test_a_weak_detector_is_corrected_for() -> None:
    """Rate 0.1, sensitivity 0.6, specificity 0.99: the observed rate is far from the truth, the corrected interval holds it."""
    rng, covered, estimates, samples = random.Random(0), 0, [], 50
    for i in range(samples):
        calibration = DetectorCounts(sum(rng.random() < 0.6 for _ in range(200)), 200, sum(rng.random() < 0.99 for _ in range(400)), 400)
        k = sum(rng.random() < (0.6 if rng.random() < 0.1 else 0.01) for _ in range(500))
        rate = rogan_gladen(k, 500, calibration, draws=1000, seed=i)
        estimates.append(rate.estimate)
        covered += rate.low <= 0.1 <= rate.high
    assert sum(estimates) / samples == pytest.approx(0.1, abs=0.01)
    assert covered / samples >= 0.9
    assert rogan_gladen(69, 1000, DetectorCounts(600, 1000, 990, 1000)).estimate == pytest.approx(0.1)


def test_few_labeled_images_make_a_wide_interval() -> None:
    wide, narrow = (rogan_gladen(50, 500, DetectorCounts(7 * m, 10 * m, 9 * m + m, 10 * m)) for m in (1, 100))
    assert wide.estimate == narrow.estimate
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert rogan_gladen(0, 100, DetectorCounts(90, 100, 90, 100)).estimate == 0
    assert rogan_gladen(100, 100, DetectorCounts(90, 100, 90, 100)).estimate == 1
    # six labeled images: the detector may be no better than a coin, and then zero detections show nothing
    assert rogan_gladen(0, 1000, DetectorCounts(2, 3, 2, 3))[:3] == (0, 0, 1)


def test_a_detector_hardly_better_than_a_coin_is_refused() -> None:
    for calibration in (DetectorCounts(60, 100, 60, 100), DetectorCounts(10, 100, 90, 100)):
        with pytest.raises(UserError, match=r"below 0\.2"):
            rogan_gladen(10, 100, calibration)
    assert "0.40" in rogan_gladen(50, 100, DetectorCounts(70, 100, 70, 100)).warning
    assert rogan_gladen(50, 100, DetectorCounts(80, 100, 70, 100)).warning == ""
    for calibration in (DetectorCounts(0, 0, 1, 1), DetectorCounts(3, 2, 1, 1)):
        with pytest.raises(UserError, match="k="):
            rogan_gladen(1, 10, calibration)


def test_the_rate_of_a_single_attempt() -> None:
    assert single_attempt_rate(0.36, 1) == pytest.approx(0.36)
    assert single_attempt_rate(1 - 0.99**392, 392) == pytest.approx(0.01)
    assert single_attempt_rate(1, 50) == 1
    assert single_attempt_rate(0, 50) == 0
    for asr, k in ((1.1, 2), (0.5, 0)):
        with pytest.raises(UserError, match="asr"):
            single_attempt_rate(asr, k)


def test_a_corrected_rate_lies_within_its_interval() -> None:
    """Zero detections by a judge that hardly errs: no bootstrap sample is 0, but the estimate is."""
    for k in (0, 20):
        rate = rogan_gladen(k, 20, DetectorCounts(100_000, 100_000, 100_000, 100_000), draws=1000)
        assert rate.low <= rate.estimate == k / 20 <= rate.high


def test_the_jackknife_of_a_mean_is_its_variance() -> None:
    values = [1.0, 4.0, 4.0, 7.0]
    assert jackknife_variance([(16 - value) / 3 for value in values]) == pytest.approx(6 / 4)
