"""Counts -> a rate with its interval: one rate has one interval, wherever it is used. Imports no torch."""

from collections.abc import Sequence

from eval.records.rates import CountedRate
from eval.stats.clusters import effective_size
from eval.stats.intervals import rate_interval

EXACT, CLUSTERED = "Clopper-Pearson", "Clopper-Pearson, clustered by prompt"


def counted_rate(k: int, n: int, effective: float | None = None) -> CountedRate:
    """Return k of n as a rate with the interval of eval.stats.intervals.rate_interval.

    Raises:
        UserError: n <= 0, or k outside [0, n].
    """
    estimate, low, high = rate_interval(k, n, effective)
    return CountedRate(k=k, n=n, estimate=estimate, low=low, high=high, effective=effective)


def clustered_rate(outcomes_by_prompt: Sequence[Sequence[bool]]) -> CountedRate:
    """Return the rate over images grouped by prompt; it has `effective` if some prompt has more than one image."""
    successes, trials = [sum(outcomes) for outcomes in outcomes_by_prompt], [len(outcomes) for outcomes in outcomes_by_prompt]
    is_clustered = max(trials) > 1
    return counted_rate(sum(successes), sum(trials), effective_size(successes, trials) if is_clustered else None)


def method_of(rate: CountedRate) -> str:
    """Return the name of a rate's interval."""
    return EXACT if rate.effective is None else CLUSTERED
