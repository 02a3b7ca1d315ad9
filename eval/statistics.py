"""Intervals for counted evidence. No torch here: every number can be checked with a pocket calculator and a table."""

from math import comb, sqrt
from statistics import NormalDist
from typing import NamedTuple

from erasure.errors import UserError


class Interval(NamedTuple):
    """An estimate and its confidence bounds, as shares in [0, 1] (differences in [-1, 1])."""

    estimate: float
    low: float
    high: float


def wilson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of k successes in n trials (Wilson, 1927).

    Raises:
        UserError: no trials, or k outside [0, n].
    """
    if n <= 0 or not 0 <= k <= n:
        raise UserError(f"a rate needs 0 <= k <= n and n > 0, got k={k}, n={n}.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = k / n
    centre, spread = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # at 0 and n the bound is exact; rounding must not push it beyond
    low = 0.0 if k == 0 else (centre - spread) / scale
    high = 1.0 if k == n else (centre + spread) / scale
    return Interval(p, low, high)


def paired_difference(both: int, only_first: int, only_second: int, neither: int, confidence: float = 0.95) -> Interval:
    """Difference of two rates over the same cases, first minus second (Newcombe, 1998, paired method 10).

    Args: the four cells of the paired table, such as right in both models, right only in the first, ...
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


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that both models are right equally often, from the discordant pairs (McNemar, 1947)."""
    n = only_first + only_second
    tail = sum(comb(n, i) for i in range(min(only_first, only_second) + 1)) / 2**n
    return min(1.0, 2 * tail)
