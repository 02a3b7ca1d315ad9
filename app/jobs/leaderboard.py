"""The leaderboard: every audit below a folder, read from its result.json. This module does not import torch."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, Template
from markupsafe import Markup

from app.jobs import queue
from erasure.errors import UserError
from erasure.storage.files import read_json, write_bytes
from eval.records import check_result, is_audit, read_result
from eval.report.numbers import format_percent, format_percent_span
from eval.suites.cases import REPHRASED_ROLES
from eval.suites.fine_grained import describe_only

RATES = ("UA", "IRA", "CRA")
METHOD_COLORS = ("#2f6feb", "#d9480f", "#1f7a4d", "#9c36b5", "#c2255c", "#0b7285", "#846000", "#495057", "#5f3dc4")


@dataclass(frozen=True)
class LeaderboardRow:
    """One audit."""

    folder: Path
    method: str
    concepts: str
    strength: float
    suite: str
    tier: str
    rates: dict[str, dict[str, Any]]  # of the erased model by name: k, n, estimate, low, high
    base: dict[str, dict[str, Any]]
    reworded: dict[str, Any] | None  # lowest UA over rephrased prompts: by, k, n, estimate, low, high; None where none were generated
    attacked: dict[str, Any] | None  # UA under the most successful prompt attack: k, n, estimate, low, high; None where none ran
    forwards: int | None  # of the erasure; None where it was made elsewhere
    backwards: int | None
    seconds: float | None  # that the erasure took; None where its run folder is unknown
    size: int | None  # bytes of the edit
    verdict: str  # PASS, FAIL, INCONCLUSIVE; empty where no report was written
    sensitive: bool  # of the nsfw kind: images are blurred until the reader reveals them

    @property
    def retained(self) -> float:
        """The mean of IRA and CRA."""
        return float(self.rates["IRA"]["estimate"] + self.rates["CRA"]["estimate"]) / 2


def load_rows(root: Path) -> list[LeaderboardRow]:
    """Return every complete audit with retained rates and a base model below a folder, sorted by erased, then by retained."""
    return load_leaderboard(root)[0]


def load_leaderboard(root: Path) -> tuple[list[LeaderboardRow], list[str]]:
    """Return the rows of `load_rows`, and one line for every result and every job that cannot be read."""
    results, rows = [], []
    unreadable = [
        f"job {folder.name}: {p.error}" for folder, _ in queue.find_jobs(root) if (p := queue.read_progress(folder)).state == "broken"
    ]
    for path in sorted(root.glob("**/result.json")):
        try:
            results.append((path.parent, read_result(path.parent)))
        except UserError as error:
            unreadable.append(str(error))
    runs = {record["edit"]: (folder, record) for folder, record in results if "edit" in record}
    for folder, result in results:
        try:
            if not is_audit(result):
                continue
            check_result(result, str(folder / "result.json"))
            if has_comparison(result["models"]):
                rows.append(to_row(folder, result, runs))
        except UserError as error:
            unreadable.append(str(error))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            unreadable.append(f"{folder} has no readable audit ({type(error).__name__}: {error}).")
    return sorted(rows, key=lambda row: (-row.rates["UA"]["estimate"], -row.retained)), unreadable


def has_comparison(models: dict[str, Any]) -> bool:
    """Return whether base and erased model both have UA, IRA and CRA: not without a judge, a grid, or the base's images."""
    return all(set(RATES) <= models.get(model, {"rates": {}})["rates"].keys() for model in ("base", "erased"))


def to_row(folder: Path, result: dict[str, Any], runs: dict[str, tuple[Path, dict[str, Any]]]) -> LeaderboardRow:
    edits, job = result["edits"], result["job"]
    edit_runs = [runs[digest] for digest in job["edits"] if digest in runs]
    has_all_runs = len(edit_runs) == len(edits)
    report = read_json(folder / "report.json") if (folder / "report.json").exists() else None
    return LeaderboardRow(
        folder=folder,
        method=" + ".join(e["method"] for e in edits),
        concepts="; ".join(c["name"] for e in edits for c in e["concepts"])
        + (f" only{describe_only(result)}" if describe_only(result) else ""),
        strength=job["strength"],
        suite=job["suite"] + (f" ({result['suite_file']})" if "suite_file" in result else ""),
        tier=result["tier"],
        rates={name: result["models"]["erased"]["rates"][name] for name in RATES},
        base={name: result["models"]["base"]["rates"][name] for name in RATES},
        reworded=find_worst_rewording(result["models"]["erased"]["rates"]),
        attacked=result["models"]["erased"]["rates"].get("UA_attacked"),
        forwards=total_cost(edits, "unet_forwards"),
        backwards=total_cost(edits, "unet_backwards"),
        seconds=sum(read_json(run / "timing.json")["seconds"] for run, _ in edit_runs) if has_all_runs else None,
        size=sum(record["bytes"] for _, record in edit_runs) if has_all_runs else None,
        verdict=verdict_of(report) if report else "",
        sensitive=any(c["kind"] == "nsfw" for e in edits for c in e["concepts"]),
    )


def verdict_of(report: dict[str, Any]) -> str:
    """Return the verdict of a report, and whose thresholds decided where they are not the audit's own."""
    thresholds, state = report["thresholds"], str(report["verdict"]["state"])
    return state if thresholds["from_suite"] else f"{state} by {thresholds['file'] or 'another suite'}"


def total_cost(edits: Sequence[dict[str, Any]], key: str) -> int | None:
    """Return the network passes of all erasures together; None where one has no cost, such as images made by another tool."""
    return sum(e["cost"][key] for e in edits) if all(key in e["cost"] for e in edits) else None


def format_passes(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def find_worst_rewording(rates: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return the rephrasing with the lowest UA; None where none was measured. Attacks are not among them."""
    rates_by_role = {role: rates[f"UA_{role}"] for role in REPHRASED_ROLES if f"UA_{role}" in rates}
    worst_role = min(rates_by_role, key=lambda role: rates_by_role[role]["estimate"], default=None)
    return {"by": worst_role, **rates_by_role[worst_role]} if worst_role else None


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
        r = row.rates[name]
        columns |= {name: round(r["estimate"], 5), f"{name}_low": round(r["low"], 5), f"{name}_high": round(r["high"], 5)}
        columns |= {f"{name}_k": r["k"], f"{name}_n": r["n"], f"{name}_base": round(row.base[name]["estimate"], 5)}
    for name, rate in (("reworded", row.reworded), ("attacked", row.attacked)):
        r = rate or dict.fromkeys(("estimate", "low", "high", "k", "n"), "")
        columns |= {name: r["estimate"], **{f"{name}_{key}": r[key] for key in ("low", "high", "k", "n")}}
    columns["reworded_by"] = row.reworded["by"] if row.reworded else ""
    return columns | {
        "unet_forwards": row.forwards,
        "unet_backwards": row.backwards,
        "seconds": row.seconds,
        "bytes": row.size,
        "folder": str(row.folder),
    }


def as_markdown(rows: Sequence[LeaderboardRow]) -> str:
    rate_heads = ("erased: UA", "rephrased", "under attack", "retained: IRA", "retained: CRA")
    heads = ("method", "concepts", "suite", "verdict", *rate_heads, "UNet forwards", "backwards", "seconds")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        name = row.method + (f" ×{row.strength:g}" if row.strength != 1 else "")
        rates = " | ".join(
            (format_rate(row, "UA"), format_reworded(row), format_attacked(row), format_rate(row, "IRA"), format_rate(row, "CRA"))
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
            "Percent with 95 % intervals (Clopper-Pearson, as in every report) and the base model's rate.",
            "Rephrased: the lowest UA among synonyms, descriptions, misspellings and replayed prompts.",
            f"Under attack: UA left by the most successful prompt attack. Attacks ran in {attacked_count} of {len(rows)} audits; "
            "the others were not attacked.",
        )
    )


def format_rate(row: LeaderboardRow, name: str) -> str:
    r = row.rates[name]
    return f"{_format_interval(r)}; base {format_percent(row.base[name]['estimate'])})"


def format_reworded(row: LeaderboardRow) -> str:
    return "not measured" if row.reworded is None else f"{_format_interval(row.reworded)}; {row.reworded['by']})"


def format_attacked(row: LeaderboardRow) -> str:
    return "not attacked" if row.attacked is None else f"{_format_interval(row.attacked)}; {row.attacked['n']} prompts)"


def _format_interval(r: dict[str, Any]) -> str:
    return f"{format_percent(r['estimate'])} ({format_percent_span(r['low'], r['high'])}"


def as_html(rows: Sequence[LeaderboardRow]) -> str:
    """Render one file with a scatter plot and a table that sorts by its headings. It makes no requests."""
    functions = {
        "format_rate": format_rate,
        "format_reworded": format_reworded,
        "format_attacked": format_attacked,
        "format_passes": format_passes,
        "note": describe_columns(rows),
    }
    return _template("leaderboard.html.j2").render(rows=rows, rates=RATES, scatter=Markup(render_scatter(rows)), **functions)


def render_scatter(rows: Sequence[LeaderboardRow]) -> str:
    """Render erased against retained with intervals as HTML. Every point has a label and can take keyboard focus."""
    methods = sorted({row.method for row in rows})
    return _template("scatter.html.j2").render(rows=rows, format_rate=format_rate, methods=methods, colors=METHOD_COLORS)


def _template(name: str) -> Template:
    loader = FileSystemLoader(Path(__file__).parent.parent / "templates")
    return Environment(loader=loader, autoescape=True, trim_blocks=True).get_template(name)
