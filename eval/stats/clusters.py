"""Intervals for pictures that share a prompt: k pictures of one prompt are not k independent trials. No torch here."""

from collections.abc import Sequence

import numpy as np

from erasure.errors import UserError
from eval.scoring.rates import counted_rate
from eval.stats.intervals import Interval


def clustered_rate(outcomes_by_prompt: Sequence[Sequence[bool]]) -> dict[str, float]:
    """The rate of pictures that come several a prompt; with `effective` where some prompt has more than one."""
    successes, trials = [sum(outcomes) for outcomes in outcomes_by_prompt], [len(outcomes) for outcomes in outcomes_by_prompt]
    is_clustered = max(trials) > 1
    return counted_rate(sum(successes), sum(trials), effective_size(successes, trials) if is_clustered else None)


def effective_size(successes: Sequence[int], trials: Sequence[int]) -> float:
    """How many independent trials the clusters are worth: n / (1 + (k - 1) rho).

    rho is the intraclass correlation by one-way analysis of variance (Donner, 1986), not below 0; k is sum m^2 / sum m over the sizes m of
    the clusters, the common size where all are equal. Where nothing varies (no success at all, or only successes) rho cannot be estimated
    and the clusters are counted.

    Args:
        successes, trials: of each cluster, such as pictures of one prompt.

    Raises:
        UserError: no cluster, an empty one, or more successes than trials.
    """
    if not trials or len(successes) != len(trials) or any(not 0 <= x <= m or m < 1 for x, m in zip(successes, trials, strict=True)):
        raise UserError(f"clusters need 0 <= successes <= trials and trials > 0, got {list(successes)[:5]} of {list(trials)[:5]}.")
    clusters, n, hits = len(trials), sum(trials), sum(successes)
    if hits in (0, n) or clusters == 1 or n == clusters:
        return float(clusters)
    p = hits / n
    between = sum(m * (x / m - p) ** 2 for x, m in zip(successes, trials, strict=True)) / (clusters - 1)
    within = sum(x * (1 - x / m) for x, m in zip(successes, trials, strict=True)) / (n - clusters)
    squares = sum(m * m for m in trials)
    size = (n - squares / n) / (clusters - 1)
    rho = max((between - within) / (between + (size - 1) * within), 0.0)
    return n / (1 + (squares / n - 1) * rho)


def cluster_bootstrap(clusters: Sequence[Sequence[float]], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Percentile interval of the mean of all values when whole clusters are drawn with replacement (Davison and Hinkley, 1997, 3.8).

    At 0 or all successes every resample is the same and the interval is a point; `clustered_rate` is for those.

    Args:
        clusters: values of each cluster, such as readings of the pictures of one prompt.

    Raises:
        UserError: fewer than two clusters, or an empty one.
    """
    if len(clusters) < 2 or not all(clusters):
        raise UserError(f"a cluster bootstrap needs two clusters, none of them empty; got sizes {[len(c) for c in clusters][:5]}.")
    totals, sizes = np.array([sum(c) for c in clusters], dtype=float), np.array([len(c) for c in clusters], dtype=float)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):
        resampled = rng.integers(len(clusters), size=len(clusters))
        means[i] = totals[resampled].sum() / sizes[resampled].sum()
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(totals.sum() / sizes.sum()), float(low), float(high))
