"""A counted rate and its interval: one rate has one interval, wherever it is used. Imports no torch."""

from collections.abc import Mapping

from eval.stats.intervals import Interval, clopper_pearson

EXACT, CLUSTERED = "Clopper-Pearson", "Clopper-Pearson, clustered by prompt"


def rate_interval(k: int, n: int, effective: float | None = None) -> Interval:
    """Return the 95 % interval of a rate, the same in tables, gates, curves and the leaderboard.

    It is exact (Clopper-Pearson), since Wilson's interval covers too little near 0 and 1, where erasures are judged. If several images
    share a prompt, it is that of their effective number (Korn and Graubard, 1998).

    Args:
        k, n: successes and trials.
        effective: how many independent trials the n are worth (`effective_size`); None if they are independent.

    Raises:
        UserError: n <= 0, or k outside [0, n].
    """
    effective_share = 1.0 if effective is None else effective / n
    return Interval(k / n, *clopper_pearson(k * effective_share, n * effective_share)[1:])


def counted_rate(k: int, n: int, effective: float | None = None) -> dict[str, float]:
    """Return a rate as it is recorded: k, n, estimate, low, high, and `effective` if given."""
    record = {"k": k, "n": n, **rate_interval(k, n, effective)._asdict()}
    return record if effective is None else {**record, "effective": effective}


def method_of(rate: Mapping[str, float]) -> str:
    """Return the name of a recorded rate's interval."""
    return CLUSTERED if "effective" in rate else EXACT
