"""Two audits side by side: the same cases from the same noise, compared pair by pair."""

from dataclasses import replace
from pathlib import Path

from erasure.errors import UserError
from eval.records.audit_result import AuditResult
from eval.records.axes import AXES
from eval.records.models import BASE, ERASED
from eval.records.result_files import read_result
from eval.records.rows import SampleRow
from eval.report.numbers import format_percent, format_points, format_points_span
from eval.scoring.counting import paired_differences
from eval.scoring.recount import load_sample_rows
from eval.stats.intervals import holm


def tabulate_comparison(first: Path, second: Path) -> list[str]:
    """Return a Markdown table: each rate of both erased models, their paired difference with its interval, and McNemar's p after Holm.

    Raises:
        UserError: a folder has no finished audit, or nothing was counted in it; or the audits differ in what they ask, in their judges or
            in their images.
    """
    folders = (first, second)
    results = [read_result(folder) for folder in folders]
    erased_figures = []
    for folder, result in zip(folders, results, strict=True):
        if not result.erased:
            reasons = " ".join(result.missing.values())
            raise UserError(f"{folder} is incomplete: nothing was counted in it. {reasons}".strip())
        erased_figures.append(result.erased)
    conditions = [_audit_conditions(result) for result in results]
    for condition, first_value in conditions[0].items():
        if first_value != (second_value := conditions[1][condition]):
            mismatch = f"{condition} is {_shorten(first_value)} in the first and {_shorten(second_value)} in the second"
            raise UserError(f"{first} and {second} cannot be paired: {mismatch}.")
    rows = [_erased_rows(folder) for folder in folders]
    _check_same_images(folders, rows)
    # paired is the second model minus the first
    pooled = [replace(row, model=model) for model, model_rows in zip((ERASED, BASE), rows, strict=True) for row in model_rows]
    excluded = tuple(erased_figures[0].excluded)
    tables = paired_differences(pooled, results[0].axis, results[0].targets, excluded, results[0].job.only)
    if not tables:
        raise UserError(f"{first} and {second} have no image in common that a rate counts; there is nothing to compare.")
    adjusted = holm([table.p for table in tables.values()])
    names = [" + ".join(edit.method for edit in result.edits) for result in results]
    lines = [f"| rate | {names[0]} (first) | {names[1]} (second) | first − second, points | p, Holm |", "|---|---|---|---|---|"]
    for (name, table), p in zip(tables.items(), adjusted, strict=True):
        rates = [figures.rates[name] for figures in erased_figures]
        columns = " | ".join(f"{format_percent(rate.estimate)}% ({rate.k}/{rate.n})" for rate in rates)
        change = f"{format_points(table.estimate)} ({format_points_span(table.low, table.high)})"
        lines.append(f"| {name} | {columns} | {change} | {p:.2g} |")
    return lines


def _audit_conditions(result: AuditResult) -> dict[str, object]:
    """Return what has to be the same in two audits, by a name for the error message."""
    job = result.job
    return {
        "the base": job.base,
        "the suite": (job.suite, job.suite_version),
        "axis": job.axis,
        "tier": job.tier,
        "precision": job.compute,
        "--only": job.only,
        "the replayed list": job.replay or "none",
        "the target": list(result.targets),
        "what the suite asks": job.suite_digest,
        "what is excluded from the rates": sorted(result.erased.excluded) if result.erased else [],
        **{f"the judge of {axis}": result.judges.get(axis, "none") for axis in AXES},
    }


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:80] + "..."


def _erased_rows(folder: Path) -> list[SampleRow]:
    return [row for row in load_sample_rows(folder) if row.model == ERASED]


def _check_same_images(folders: tuple[Path, Path], rows: list[list[SampleRow]]) -> None:
    """Check that both audits have the same images; other edits may skip cells, and external images may have other seeds."""
    images = [{(row.prompt, row.seed, row.case_key): row.image for row in model_rows} for model_rows in rows]
    for i, folder in enumerate(folders):
        if missing := images[1 - i].keys() - images[i].keys():
            example = Path(images[1 - i][min(missing)]).name
            raise UserError(f"{folder} lacks {len(missing)} images of {folders[1 - i]}, such as {example}; only the same can be paired.")
