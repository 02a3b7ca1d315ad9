"""A counted rate and its interval: one number has one interval, wherever it is shown or decided. No torch here."""

from collections.abc import Mapping

from eval.stats.intervals import Interval, clopper_pearson

EXACT, CLUSTERED = "Clopper-Pearson", "Clopper-Pearson, clustered by prompt"


def rate_interval(k: int, n: int, effective: float | None = None) -> Interval:
    """The 95 % interval of a rate, the same one wherever that rate is shown or decided: in tables, gates, curves and on the board.

    It is exact (Clopper-Pearson), since Wilson's covers too little where a rate is near 0 or 1, and there erasures are judged. Where
    several pictures share a prompt, it is that of their effective number (Korn and Graubard, 1998).

    Args:
        k, n: successes and trials.
        effective: how many independent trials the n are worth (`effective_size`); None where they are independent.

    Raises:
        UserError: no trials, or k outside [0, n].
    """
    effective_share = 1.0 if effective is None else effective / n
    return Interval(k / n, *clopper_pearson(k * effective_share, n * effective_share)[1:])


def counted_rate(k: int, n: int, effective: float | None = None) -> dict[str, float]:
    """A rate as it is recorded: k, n, estimate, low and high, and `effective` where there is one."""
    record = {"k": k, "n": n, **rate_interval(k, n, effective)._asdict()}
    return record if effective is None else {**record, "effective": effective}


def method_of(rate: Mapping[str, float]) -> str:
    """The name of a recorded rate's interval."""
    return CLUSTERED if "effective" in rate else EXACT
