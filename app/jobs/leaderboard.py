"""The leaderboard: every audit below a folder, read from its result.json. This module does not import torch."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from app.html_templates import render_html
from app.jobs import queue
from app.jobs.scatter import ScatterPoint, render_scatter
from erasure.errors import UserError
from erasure.storage.files import read_json, write_bytes
from eval.records.audit_result import AuditedEdit, AuditResult
from eval.records.convert import parse_record
from eval.records.fields import Count, Role
from eval.records.rates import CountedRate, RateName
from eval.records.report import ReportHead
from eval.records.result_files import is_audit, parse_result, read_report_head, read_run_result
from eval.report.numbers import format_percent, format_percent_span
from eval.suites.cases import REPHRASED_ROLES
from eval.suites.fine_grained import describe_only

RATES = (RateName.UA, RateName.IRA, RateName.CRA)


@dataclass(frozen=True, kw_only=True)
class ErasureResult:
    """The result.json of an erasure."""

    edit: str  # digest
    cost: Mapping[str, Count]
    bytes: Count


@dataclass(frozen=True)
class Rewording:
    """UA over the prompts that ask for the concept in other words."""

    by: Role
    rate: CountedRate


@dataclass(frozen=True)
class LeaderboardRow:
    """One audit."""

    folder: Path
    method: str
    concepts: str
    strength: float
    suite: str
    tier: str
    rates: Mapping[RateName, CountedRate]  # of the erased model
    base: Mapping[RateName, CountedRate]
    reworded: Rewording | None  # with the lowest UA; None where no rephrased prompts were generated
    attacked: CountedRate | None  # UA under the most successful prompt attack; None where none ran
    forwards: int | None  # of the erasure; None where it was made elsewhere
    backwards: int | None
    seconds: float | None  # that the erasure took; None where its run folder is unknown
    size: int | None  # bytes of the edit
    verdict: str  # PASS, FAIL, INCONCLUSIVE; empty where no report was written
    sensitive: bool  # of the nsfw kind: images are blurred until the reader reveals them

    @property
    def retained(self) -> float:
        """The mean of IRA and CRA."""
        return (self.rates[RateName.IRA].estimate + self.rates[RateName.CRA].estimate) / 2


def load_rows(root: Path) -> list[LeaderboardRow]:
    """Return every complete audit with retained rates and a base model below a folder, sorted by erased, then by retained."""
    return load_leaderboard(root)[0]


def load_leaderboard(root: Path) -> tuple[list[LeaderboardRow], list[str]]:
    """Return the rows of `load_rows`, and one line for every result and every job that cannot be read."""
    rows: list[LeaderboardRow] = []
    audits: list[tuple[Path, AuditResult]] = []
    runs: dict[str, tuple[Path, ErasureResult]] = {}
    unreadable = [
        f"job {folder.name}: {p.error}" for folder, _ in queue.find_jobs(root) if (p := queue.read_progress(folder)).state == "broken"
    ]
    for path in sorted(root.glob("**/result.json")):
        try:
            record = read_run_result(path.parent)
            if is_audit(record):
                audits.append((path.parent, parse_result(record, path)))
            elif "edit" in record:
                run = parse_record(record, ErasureResult, str(path))
                runs[run.edit] = path.parent, run
        except UserError as error:
            unreadable.append(str(error))
    for folder, result in audits:
        try:
            if has_comparison(result):
                rows.append(to_row(folder, result, runs))
        except (UserError, KeyError, TypeError) as error:  # of the report, or of an erasure's timing
            unreadable.append(f"{folder} has no readable audit ({type(error).__name__}: {error}).")
    return sorted(rows, key=lambda row: (-row.rates[RateName.UA].estimate, -row.retained)), unreadable


def has_comparison(result: AuditResult) -> bool:
    """Return whether base and erased model both have UA, IRA and CRA: not without a judge, a grid, or the base's images."""
    return all(figures is not None and set(RATES) <= figures.rates.keys() for figures in (result.base, result.erased))


def to_row(folder: Path, result: AuditResult, runs: Mapping[str, tuple[Path, ErasureResult]]) -> LeaderboardRow:
    """Return the row of an audit of which `has_comparison` is true."""
    assert result.erased and result.base
    edits, job, rates = result.edits, result.job, result.erased.rates
    edit_runs = [runs[digest] for digest in job.edits if digest in runs]
    has_all_runs = len(edit_runs) == len(edits)
    only = describe_only(result)
    return LeaderboardRow(
        folder=folder,
        method=" + ".join(edit.method for edit in edits),
        concepts="; ".join(concept.name for edit in edits for concept in edit.concepts) + (f" only{only}" if only else ""),
        strength=job.strength,
        suite=job.suite + (f" ({result.suite_file})" if result.suite_file else ""),
        tier=result.tier,
        rates={name: rates[name] for name in RATES},
        base={name: result.base.rates[name] for name in RATES},
        reworded=find_worst_rewording(rates),
        attacked=rates.get(RateName.UA_ATTACKED),
        forwards=total_cost(edits, "unet_forwards"),
        backwards=total_cost(edits, "unet_backwards"),
        seconds=sum(read_json(run_folder / "timing.json")["seconds"] for run_folder, _ in edit_runs) if has_all_runs else None,
        size=sum(run.bytes for _, run in edit_runs) if has_all_runs else None,
        verdict=verdict_of(read_report_head(folder)) if (folder / "report.json").exists() else "",
        sensitive=any(concept.kind == "nsfw" for edit in edits for concept in edit.concepts),
    )


def verdict_of(report: ReportHead) -> str:
    """Return the verdict of a report, and whose thresholds decided where they are not the audit's own."""
    state, thresholds = report.verdict.state, report.thresholds
    return state if thresholds.from_suite else f"{state} by {thresholds.file or 'another suite'}"


def total_cost(edits: Sequence[AuditedEdit], key: str) -> int | None:
    """Return the network passes of all erasures together; None where one has no cost, such as images made by another tool."""
    return sum(edit.cost[key] for edit in edits) if all(key in edit.cost for edit in edits) else None


def format_passes(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def find_worst_rewording(rates: Mapping[RateName, CountedRate]) -> Rewording | None:
    """Return the rephrasing with the lowest UA; None where none was measured. Attacks are not among them."""
    rewordings = [Rewording(role, rate) for role in REPHRASED_ROLES if (rate := rates.get(RateName(f"UA_{role}")))]
    return min(rewordings, key=lambda rewording: rewording.rate.estimate, default=None)


def write_leaderboard(rows: Sequence[LeaderboardRow], out: Path) -> list[Path]:
    """Write leaderboard.csv, leaderboard.md and leaderboard.html to a folder and return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    pages = {"leaderboard.csv": as_csv(rows), "leaderboard.md": as_markdown(rows), "leaderboard.html": as_html(rows)}
    for name, text in pages.items():
        write_bytes(out / name, text.encode())
    return [out / name for name in pages]


def as_csv(rows: Sequence[LeaderboardRow]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flatten(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flatten(row) for row in rows)
    return text.getvalue()


def flatten(row: LeaderboardRow) -> dict[str, Any]:
    """Return a row as plain values by column; unknown values are empty."""
    columns: dict[str, Any] = {
        "method": row.method,
        "concepts": row.concepts,
        "strength": row.strength,
        "suite": row.suite,
        "tier": row.tier,
    }
    columns["verdict"] = row.verdict
    for name in RATES:
        rate = row.rates[name]
        columns |= {f"{name}": round(rate.estimate, 5), f"{name}_low": round(rate.low, 5), f"{name}_high": round(rate.high, 5)}
        columns |= {f"{name}_k": rate.k, f"{name}_n": rate.n, f"{name}_base": round(row.base[name].estimate, 5)}
    for column, other in (("reworded", row.reworded.rate if row.reworded else None), ("attacked", row.attacked)):
        columns[column] = other.estimate if other else ""
        columns |= {f"{column}_{key}": getattr(other, key) if other else "" for key in ("low", "high", "k", "n")}
    columns["reworded_by"] = row.reworded.by if row.reworded else ""
    return columns | {
        "unet_forwards": row.forwards,
        "unet_backwards": row.backwards,
        "seconds": row.seconds,
        "bytes": row.size,
        "folder": str(row.folder),
    }


def as_markdown(rows: Sequence[LeaderboardRow]) -> str:
    rate_heads = ("erased: UA", "rephrased", "under attack", "retained: IRA", "retained: CRA")
    heads = ("method", "concepts", "suite", "verdict", *rate_heads, "denoiser forwards", "backwards", "seconds")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        name = row.method + (f" ×{row.strength:g}" if row.strength != 1 else "")
        rates = " | ".join(
            (
                format_rate(row, RateName.UA),
                format_reworded(row),
                format_attacked(row),
                format_rate(row, RateName.IRA),
                format_rate(row, RateName.CRA),
            )
        )
        concepts = row.concepts.replace("|", "\\|")
        seconds = "" if row.seconds is None else f"{row.seconds:.0f}"
        suite, verdict = (text.replace("|", "\\|") for text in (row.suite, row.verdict))
        prefix = f"{name} | {concepts} | {suite}, {row.tier} | {verdict}"
        lines.append(f"| {prefix} | {rates} | {format_passes(row.forwards)} | {format_passes(row.backwards)} | {seconds} |")
    return "\n".join([*lines, "", describe_columns(rows), ""])


def describe_columns(rows: Sequence[LeaderboardRow]) -> str:
    """Explain the columns, and count the audits that were attacked."""
    attacked_count = sum(row.attacked is not None for row in rows)
    return " ".join(
        (
            "Percent with 95% intervals (Clopper-Pearson, as in every report) and the base model's rate.",
            "Rephrased: the lowest UA among synonyms, descriptions, misspellings and replayed prompts.",
            f"Under attack: UA left by the most successful prompt attack. Attacks ran in {attacked_count} of {len(rows)} audits; "
            "the others were not attacked.",
        )
    )


def format_rate(row: LeaderboardRow, name: RateName) -> str:
    return f"{_format_interval(row.rates[name])}; base {format_percent(row.base[name].estimate)})"


def format_reworded(row: LeaderboardRow) -> str:
    return "not measured" if row.reworded is None else f"{_format_interval(row.reworded.rate)}; {row.reworded.by})"


def format_attacked(row: LeaderboardRow) -> str:
    return "not attacked" if row.attacked is None else f"{_format_interval(row.attacked)}; {row.attacked.n} prompts)"


def _format_interval(rate: CountedRate) -> str:
    return f"{format_percent(rate.estimate)} ({format_percent_span(rate.low, rate.high)}"


def as_html(rows: Sequence[LeaderboardRow]) -> str:
    """Render one file with a scatter plot and a table that sorts by its headings. It makes no requests."""
    functions = {
        "format_rate": format_rate,
        "format_reworded": format_reworded,
        "format_attacked": format_attacked,
        "format_passes": format_passes,
        "note": describe_columns(rows),
    }
    return render_html("leaderboard", rows=rows, rates=RATES, scatter=Markup(scatter_of(rows, range(len(rows)))), **functions)


def scatter_of(rows: Sequence[LeaderboardRow], numbers: Sequence[int]) -> str:
    """Render rows as points, erased against retained; `numbers` are their places in a table."""
    return render_scatter([to_point(row) for row in rows], numbers)


def to_point(row: LeaderboardRow) -> ScatterPoint:
    rates = ", ".join(f"{name} {format_rate(row, name)}" for name in RATES)
    erased = row.rates[RateName.UA]
    return ScatterPoint(row.method, f"{row.method}, {row.concepts}: {rates}", erased.estimate, erased.low, erased.high, row.retained)
