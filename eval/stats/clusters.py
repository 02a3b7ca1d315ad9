"""Intervals for images that share a prompt: k images of one prompt are not k independent trials. Imports no torch."""

from collections.abc import Sequence

import numpy as np

from erasure.errors import UserError
from eval.scoring.rates import counted_rate
from eval.stats.intervals import Interval


def clustered_rate(outcomes_by_prompt: Sequence[Sequence[bool]]) -> dict[str, float]:
    """Return the rate over images grouped by prompt; it has `effective` if some prompt has more than one image."""
    successes, trials = [sum(outcomes) for outcomes in outcomes_by_prompt], [len(outcomes) for outcomes in outcomes_by_prompt]
    is_clustered = max(trials) > 1
    return counted_rate(sum(successes), sum(trials), effective_size(successes, trials) if is_clustered else None)


def effective_size(successes: Sequence[int], trials: Sequence[int]) -> float:
    """Return how many independent trials the clusters are worth: n / (1 + (k - 1) rho).

    rho is the intraclass correlation by one-way analysis of variance (Donner, 1986), not below 0; k is sum m^2 / sum m over the sizes m of
    the clusters, the common size if all are equal. If nothing varies (no success at all, or only successes), rho cannot be estimated and
    the number of clusters is returned.

    Args:
        successes, trials: of each cluster, such as the images of one prompt.

    Raises:
        UserError: there is no cluster, or one is empty or has more successes than trials.
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
    """Return the percentile interval of the mean when whole clusters are resampled with replacement (Davison and Hinkley, 1997, 3.8).

    With no success or only successes, every resample is the same and the interval is a point; use `clustered_rate` there.

    Args:
        clusters: values of each cluster, such as the scores of the images of one prompt.

    Raises:
        UserError: there are fewer than two clusters, or one is empty.
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
