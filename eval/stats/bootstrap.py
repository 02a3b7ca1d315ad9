"""Intervals by resampling whole clusters, such as the images of a prompt. Imports no torch."""

from collections.abc import Sequence

import numpy as np

from erasure.errors import UserError
from eval.stats.intervals import Interval


def cluster_bootstrap(clusters: Sequence[Sequence[float]], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return the percentile interval of the mean when whole clusters are resampled with replacement (Davison and Hinkley, 1997, 3.8).

    With no success or only successes every resample is the same, so the interval is a point; use the exact one of eval.scoring.rates.

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
