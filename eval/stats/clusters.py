"""Intervals for images that share a prompt: k images of one prompt are not k independent trials. Imports no torch."""

from collections.abc import Sequence

from erasure.errors import UserError


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
