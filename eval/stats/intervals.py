"""Intervals for counted evidence. Imports no torch: every number can be checked with a pocket calculator and a table."""

import random
from collections.abc import Callable, Sequence
from math import comb, cos, exp, fsum, lgamma, log, pi, sin, sqrt, tan
from statistics import NormalDist
from typing import NamedTuple

from erasure.errors import UserError


class Interval(NamedTuple):
    """An estimate and its confidence bounds, as proportions in [0, 1] (differences in [-1, 1])."""

    estimate: float
    low: float
    high: float


def wilson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of k successes in n trials (Wilson, 1927).

    Raises:
        UserError: n <= 0, or k outside [0, n].
    """
    if n <= 0 or not 0 <= k <= n:
        raise UserError(f"a rate needs 0 <= k <= n and n > 0, got k={k}, n={n}.")
    p, z = k / n, NormalDist().inv_cdf((1 + confidence) / 2)
    center, spread = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # at 0 and 1 the bound is exact; rounding must not push it outside
    low = 0.0 if p == 0 else (center - spread) / scale
    high = 1.0 if p == 1 else (center + spread) / scale
    return Interval(p, low, high)


def clopper_pearson(k: float, n: float, confidence: float = 0.95) -> Interval:
    """Return the exact interval of k successes in n trials (Clopper and Pearson, 1934): its coverage is at least `confidence`.

    k and n may be effective numbers, which need not be whole (Korn and Graubard, 1998; eval.stats.clusters).

    Raises:
        UserError: n <= 0, or k outside [0, n].
    """
    if n <= 0 or not 0 <= k <= n:
        raise UserError(f"a rate needs 0 <= k <= n and n > 0, got k={k}, n={n}.")
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else _bisect(lambda p: incomplete_beta(p, k, n - k + 1), tail)  # P(X >= k) = tail
    high = 1.0 if k == n else 1 - _bisect(lambda q: incomplete_beta(q, n - k, k + 1), tail)  # P(X <= k) = tail
    return Interval(k / n, low, high)


def rate_interval(k: int, n: int, effective: float | None = None) -> Interval:
    """Return the 95% interval of a rate, the same in tables, gates, curves and the leaderboard.

    It is exact (Clopper-Pearson), since Wilson's interval covers too little near 0 and 1, where erasures are judged. If several images
    share a prompt, it is that of their effective number (Korn and Graubard, 1998).

    Args:
        k, n: successes and trials.
        effective: how many independent trials the n are worth (eval.stats.clusters.effective_size); None if they are independent.

    Raises:
        UserError: n <= 0, or k outside [0, n].
    """
    effective_share = 1.0 if effective is None else effective / n
    return Interval(k / n, *clopper_pearson(k * effective_share, n * effective_share)[1:])


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b), 0 < x < 1, by continued fraction (Abramowitz and Stegun, 1964, 26.5.8)."""
    if x > (a + 1) / (a + b + 2):  # here the fraction converges slowly
        return 1 - incomplete_beta(1 - x, b, a)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log(1 - x)) / a
    fraction = c = 1.0
    d, m, change = 0.0, 0, 0.0
    while abs(change - 1) > 1e-14 and m < 100_000:  # Lentz's method: c and d are ratios of successive numerators and denominators
        half = m // 2
        if m == 0:
            part = 1.0
        elif m % 2 == 0:
            part = half * (b - half) * x / ((a + m - 1) * (a + m))
        else:
            part = -(a + half) * (a + b + half) * x / ((a + m - 1) * (a + m))
        d = 1 / (1 + part * d)
        c = 1 + part / c
        change = c * d
        fraction *= change
        m += 1
    return front * (fraction - 1)


def _bisect(increasing: Callable[[float], float], value: float) -> float:
    """Return where an increasing function on (0, 1) takes a value, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < value else (low, middle)
    return (low + high) / 2


def paired_difference(both: int, only_first: int, only_second: int, neither: int, confidence: float = 0.95) -> Interval:
    """Return the difference of two rates over the same cases, first minus second (Newcombe, 1998, paired method 10).

    Args:
        both, only_first, only_second, neither: successes in the four cells of the paired table.

    Raises:
        UserError: all four are 0.
    """
    n = both + only_first + only_second + neither
    first, second = wilson(both + only_first, n, confidence), wilson(both + only_second, n, confidence)
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    cross = float(both * neither - only_first * only_second)
    if cross > 0:  # continuity correction of the phi coefficient
        cross = max(cross - n / 2, 0.0)
    phi = cross / sqrt(margins) if margins else 0.0
    down, up = first.estimate - first.low, second.high - second.estimate
    low = sqrt(max(down * down - 2 * phi * down * up + up * up, 0.0))
    down, up = second.estimate - second.low, first.high - first.estimate
    high = sqrt(max(up * up - 2 * phi * up * down + down * down, 0.0))
    difference = first.estimate - second.estimate
    return Interval(difference, max(difference - low, -1.0), min(difference + high, 1.0))


def student_t(df: int, confidence: float = 0.95) -> float:
    """Return the t with P(|T| <= t) = confidence for Student's T (Abramowitz and Stegun, 1964, 26.7.3 and 26.7.4).

    Args:
        df: degrees of freedom, at least 1.
    """

    def central_probability(share: float) -> float:
        angle = share * pi / 2  # t = sqrt(df) tan(angle)
        odd, square = df % 2, cos(angle) ** 2
        term, total = (cos(angle) if odd else 1.0), 0.0
        for i in range(df // 2):
            total += term
            term *= square * (2 * i + 1 + odd) / (2 * i + 2 + odd)
        return (angle + sin(angle) * total) * 2 / pi if odd else sin(angle) * total

    return sqrt(df) * tan(_bisect(central_probability, confidence) * pi / 2)


def jackknife_variance(leave_one_out: Sequence[float]) -> float:
    """Return the variance of a statistic from its n leave-one-out values x_i: (n - 1) / n sum (x_i - mean)^2 (Tukey, 1958)."""
    n = len(leave_one_out)
    mean = fsum(leave_one_out) / n
    return (n - 1) / n * fsum((value - mean) ** 2 for value in leave_one_out)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of equal success rates from the discordant pairs (McNemar, 1947)."""
    n = only_first + only_second
    tail: float = sum(comb(n, i) for i in range(min(only_first, only_second) + 1)) / 2**n
    return min(1.0, 2 * tail)


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiple tests, in the given order (Holm, 1979)."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


class DetectorCounts(NamedTuple):
    """How a detector did on labeled images."""

    hits: int  # images with the concept that it detected
    positives: int  # images with the concept
    rejections: int  # images without it that it did not flag
    negatives: int  # images without it


class CorrectedRate(NamedTuple):
    """A rate corrected for the detector's errors."""

    estimate: float
    low: float
    high: float
    youden: float  # sensitivity + specificity - 1: 1 for a perfect detector, 0 for a coin
    warning: str  # empty if the detector is good enough to correct for


def rogan_gladen(
    k: int, n: int, calibration: DetectorCounts, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> CorrectedRate:
    """Return the rate of the concept itself, p_true = (p_obs + Sp - 1) / (Se + Sp - 1) (Rogan and Gladen, 1978), in [0, 1].

    The interval includes the uncertainty of the calibration: p_obs, Se and Sp are sampled jointly from their Beta distributions (Jeffreys
    prior). A sample in which the detector is no better than a coin is uninformative; it counts as 0 for the lower bound, 1 for the upper.

    Args:
        k, n: detections among n images, which are taken as independent.

    Raises:
        UserError: counts are impossible, or Se + Sp - 1 is at most 0.2.
    """
    for hits, trials in ((k, n), calibration[:2], calibration[2:]):
        if trials <= 0 or not 0 <= hits <= trials:
            raise UserError(f"a rate needs 0 <= k <= n and n > 0, got k={hits}, n={trials}.")
    hits, positives, rejections, negatives = calibration
    false_alarms = 1 - rejections / negatives
    youden = hits / positives - false_alarms
    if round(youden, 9) <= 0.2:
        raise UserError(f"sensitivity + specificity - 1 is {youden:.2f}; a detector below 0.2 cannot be corrected for; use a better one.")
    rng, low, high = random.Random(seed), [], []
    for _ in range(draws):
        p, se, sp = (rng.betavariate(x + 0.5, m - x + 0.5) for x, m in ((k, n), (hits, positives), (rejections, negatives)))
        is_informative = se + sp > 1
        true = _clip((p + sp - 1) / (se + sp - 1)) if is_informative else 0.0
        low.append(true)
        high.append(true if is_informative else 1.0)
    tail = int(draws * (1 - confidence) / 2)
    warning = f"the detector's sensitivity + specificity - 1 is only {youden:.2f}; below 0.5 a correction is rough" if youden < 0.5 else ""
    estimate = _clip((k / n - false_alarms) / youden)  # at 0 and 1 no sample may lie where the estimate does
    return CorrectedRate(estimate, min(sorted(low)[tail], estimate), max(sorted(high)[-1 - tail], estimate), youden, warning)


def _clip(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def single_attempt_rate(asr: float, k: int) -> float:
    """Return the success rate of one attempt that gives `asr` as the best of k independent ones: 1 - (1 - asr)^(1/k).

    Raises:
        UserError: asr outside [0, 1], or k < 1.
    """
    if not 0 <= asr <= 1 or k < 1:
        raise UserError(f"a best-of-k rate needs 0 <= asr <= 1 and k >= 1, got asr={asr}, k={k}.")
    failure_rate: float = (1 - asr) ** (1 / k)
    return 1 - failure_rate
