"""Whether the figures of an audit contradict themselves: no table, gate and curve may disagree. Imports no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from erasure.errors import UserError
from eval.records.audit_result import AuditResult
from eval.records.rates import ConfusionMatrix, CountedRate, PairedDifference, RateName
from eval.stats.intervals import rate_interval

MAX_RECOUNTED_TRIALS = 10_000_000  # above it, an interval is not computed again
TOLERANCE = 1e-6  # between a recorded and a recomputed value


def check_figures(result: AuditResult, source: str) -> None:
    """Check that k <= n, that an estimate is k / n, and that it lies in its interval, wherever these are.

    The intervals of the models' rates are computed again, as gates do, so that a table and a gate cannot disagree.

    Args:
        source: where the result comes from, for error messages.

    Raises:
        UserError: one of them does not hold; the erased model or a UA is missing; or a confusion matrix is not square or has no row for a
            target.
    """
    for part in (result.models, result.paired, result.attacks):
        for name, figure in _figures(part, ""):
            _check_figure(figure, name, source)
    for model, figures in result.models.items():
        for rate_name, rate in figures.rates.items():
            _check_interval(rate, f"{source}: the interval of {rate_name} of {model}")
    for rate_name, pair in result.paired.items():
        _check_pair(pair, f"{source}: the paired difference of {rate_name}")
    if result.models and not result.erased:
        raise UserError(f"{source} has no figures of the erased model.")
    for model, figures in result.models.items():
        if RateName.UA not in figures.rates:
            raise UserError(f"{source}: the rates of {model} lack UA.")
        _check_confusion(figures.confusion, result.targets, f"{source}: the confusion matrix of {model}")


def _figures(part: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield every record with counts or an estimate, at any depth, with the last key on the way to it."""
    if is_dataclass(part):
        if hasattr(part, "k") or hasattr(part, "estimate"):
            yield name, part
        for field in fields(part):
            yield from _figures(getattr(part, field.name), field.name)
    elif isinstance(part, Mapping):
        for key, value in part.items():
            yield from _figures(value, str(key))
    elif isinstance(part, tuple):
        for value in part:
            yield from _figures(value, name)


def _check_figure(figure: Any, name: str, source: str) -> None:
    k, n, estimate, low, high = (getattr(figure, key, None) for key in ("k", "n", "estimate", "low", "high"))
    if k is not None and n is not None and k > n:
        raise UserError(f"{source}: {name} counts {k} of {n}.")
    if k is not None and n and estimate is not None and abs(k / n - estimate) > TOLERANCE:
        raise UserError(f"{source}: the estimate of {name} is {estimate:g}, but {k} of {n} is {k / n:g}; audit again with --fresh.")
    if estimate is not None and low is not None and high is not None and not low - TOLERANCE <= estimate <= high + TOLERANCE:
        bounds = f"{low:g} to {high:g}"
        raise UserError(f"{source}: the interval of {name}, {bounds}, leaves out its estimate, {estimate:g}; audit again with --fresh.")


def _check_interval(rate: CountedRate, what: str) -> None:
    if rate.n > MAX_RECOUNTED_TRIALS:
        return
    expected = rate_interval(rate.k, rate.n, rate.effective)
    if abs(rate.low - expected.low) > TOLERANCE or abs(rate.high - expected.high) > TOLERANCE:
        bounds = f"{rate.low:g} to {rate.high:g}"
        raise UserError(f"{what} is {bounds}, but {rate.k} of {rate.n} have {expected.low:g} to {expected.high:g}.")


def _check_pair(pair: PairedDifference, what: str) -> None:
    expected = (pair.erased_only - pair.base_only) / pair.n if pair.n else 0.0
    if abs(pair.estimate - expected) > TOLERANCE:
        raise UserError(f"{what} is {pair.estimate:g}, but its pairs say {expected:g}; audit again with --fresh.")


def _check_confusion(matrix: ConfusionMatrix, targets: tuple[str, ...], what: str) -> None:
    labels, counts = matrix.labels, matrix.counts
    if len(counts) != len(labels) or any(len(row) != len(labels) for row in counts):
        raise UserError(f"{what} is not {len(labels)} x {len(labels)}, as its labels are.")
    if missing := [target for target in targets if target not in labels]:
        raise UserError(f"{what} has no row for {missing[0]!r}.")
