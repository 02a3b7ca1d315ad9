"""The leaderboard: every audit below a folder, read from its result.json. No torch in here."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, Template
from markupsafe import Markup

from app.jobs import queue as jobs
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
    reworded: dict[str, Any] | None  # lowest UA of those that ask in other words: by, k, n, estimate, low, high; None where none was asked
    attacked: dict[str, Any] | None  # UA under the search that broke most: k, n, estimate, low, high; None where no search for prompts ran
    forwards: int | None  # of the erasure; None where nobody here made it
    backwards: int | None
    seconds: float | None  # the erasure took, where its run folder is known
    size: int | None  # bytes of the edit
    verdict: str  # PASS, FAIL, INCONCLUSIVE; empty where no report was written
    sensitive: bool  # of the nsfw kind: pictures are blurred until asked for

    @property
    def retained(self) -> float:
        """Mean of IRA and CRA."""
        return (self.rates["IRA"]["estimate"] + self.rates["CRA"]["estimate"]) / 2


def load_rows(root: Path) -> list[LeaderboardRow]:
    """Every complete audit below a folder that counted what is kept, and the base as well, best first: by erased, then by kept."""
    return load_leaderboard(root)[0]


def load_leaderboard(root: Path) -> tuple[list[LeaderboardRow], list[str]]:
    """What `entries` returns, and one line for every result and every job that cannot be read."""
    results, rows = [], []
    unreadable = [
        f"job {folder.name}: {p.error}" for folder, _ in jobs.find_jobs(root) if (p := jobs.read_progress(folder)).state == "broken"
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
            unreadable.append(f"{folder} holds no audit that can be read ({type(error).__name__}: {error}).")
    return sorted(rows, key=lambda e: (-e.rates["UA"]["estimate"], -e.retained)), unreadable


def has_comparison(models: dict[str, Any]) -> bool:
    """Whether there is something to draw erased against kept from: not without a judge, a grid, or the base's pictures."""
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
    """The verdict of a report, and by whose thresholds, where they are not those that the audit was made with."""
    thresholds, state = report.get("thresholds", {"own": True}), str(report["verdict"]["state"])  # reports of earlier versions do not say
    return state if thresholds["own"] else f"{state} by {thresholds['file'] or 'another suite'}"


def total_cost(edits: Sequence[dict[str, Any]], key: str) -> int | None:
    """Passes of the network that erasures took together; None where one of them does not say, as pictures that another tool drew."""
    return sum(e["cost"][key] for e in edits) if all(key in e["cost"] for e in edits) else None


def format_passes(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def find_worst_rewording(rates: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The way of asking in other words that brings most back; no attack is among them."""
    rates_by_role = {role: rates[f"UA_{role}"] for role in REPHRASED_ROLES if f"UA_{role}" in rates}
    worst_role = min(rates_by_role, key=lambda role: rates_by_role[role]["estimate"], default=None)
    return {"by": worst_role, **rates_by_role[worst_role]} if worst_role else None


def write_leaderboard(rows: Sequence[LeaderboardRow], out: Path) -> list[Path]:
    """board.csv, board.md and board.html in a folder."""
    out.mkdir(parents=True, exist_ok=True)
    pages = {"board.csv": as_csv(rows), "board.md": as_markdown(rows), "board.html": as_html(rows)}
    for name, text in pages.items():
        write_bytes(out / name, text.encode())
    return [out / name for name in pages]


def as_csv(rows: Sequence[LeaderboardRow]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flatten(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flatten(e) for e in rows)
    return text.getvalue()


def flatten(e: LeaderboardRow) -> dict[str, Any]:
    """An entry as one row of plain values; what is unknown is empty."""
    columns: dict[str, Any] = {"method": e.method, "concepts": e.concepts, "strength": e.strength, "suite": e.suite, "tier": e.tier}
    columns["verdict"] = e.verdict
    for name in RATES:
        r = e.rates[name]
        columns |= {name: round(r["estimate"], 5), f"{name}_low": round(r["low"], 5), f"{name}_high": round(r["high"], 5)}
        columns |= {f"{name}_k": r["k"], f"{name}_n": r["n"], f"{name}_base": round(e.base[name]["estimate"], 5)}
    for name, rate in (("reworded", e.reworded), ("attacked", e.attacked)):
        r = rate or dict.fromkeys(("estimate", "low", "high", "k", "n"), "")
        columns |= {name: r["estimate"], **{f"{name}_{key}": r[key] for key in ("low", "high", "k", "n")}}
    columns["reworded_by"] = e.reworded["by"] if e.reworded else ""
    return columns | {
        "unet_forwards": e.forwards,
        "unet_backwards": e.backwards,
        "seconds": e.seconds,
        "bytes": e.size,
        "folder": str(e.folder),
    }


def as_markdown(rows: Sequence[LeaderboardRow]) -> str:
    rate_heads = ("erased: UA", "in other words", "under attack", "kept: IRA", "kept: CRA")
    heads = ("method", "concepts", "suite", "verdict", *rate_heads, "UNet forwards", "backwards", "seconds")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for e in rows:
        name = e.method + (f" ×{e.strength:g}" if e.strength != 1 else "")
        rates = " | ".join((format_rate(e, "UA"), format_reworded(e), format_attacked(e), format_rate(e, "IRA"), format_rate(e, "CRA")))
        concepts = e.concepts.replace("|", "\\|")
        seconds = "" if e.seconds is None else f"{e.seconds:.0f}"
        suite, verdict = (text.replace("|", "\\|") for text in (e.suite, e.verdict))
        prefix = f"{name} | {concepts} | {suite}, {e.tier} | {verdict}"
        lines.append(f"| {prefix} | {rates} | {format_passes(e.forwards)} | {format_passes(e.backwards)} | {seconds} |")
    return "\n".join([*lines, "", describe_columns(rows), ""])


def describe_columns(rows: Sequence[LeaderboardRow]) -> str:
    """What the columns are, and how many of the audits were attacked at all."""
    return " ".join(
        (
            "Percent with 95 % intervals (Clopper-Pearson, as in every report) and the base model's rate.",
            "In other words: the lowest UA among synonyms, descriptions, misspellings and replayed prompts.",
            f"Under attack: UA left by the most successful search for prompts, which ran in {sum(e.attacked is not None for e in rows)} of "
            f"{len(rows)} audits; nothing is said about attacks on the others.",
        )
    )


def format_rate(e: LeaderboardRow, name: str) -> str:
    r = e.rates[name]
    return f"{_format_interval(r)}; base {format_percent(e.base[name]['estimate'])})"


def format_reworded(e: LeaderboardRow) -> str:
    return "not asked" if e.reworded is None else f"{_format_interval(e.reworded)}; {e.reworded['by']})"


def format_attacked(e: LeaderboardRow) -> str:
    return "not attacked" if e.attacked is None else f"{_format_interval(e.attacked)}; {e.attacked['n']} prompts)"


def _format_interval(r: dict[str, Any]) -> str:
    return f"{format_percent(r['estimate'])} ({format_percent_span(r['low'], r['high'])}"


def as_html(rows: Sequence[LeaderboardRow]) -> str:
    """One file with a scatter and a table that sorts by its headings; no request leaves it."""
    functions = {
        "said": format_rate,
        "said_reworded": format_reworded,
        "said_attacked": format_attacked,
        "passes": format_passes,
        "note": describe_columns(rows),
    }
    return _template("leaderboard.html.j2").render(rows=rows, rates=RATES, scatter=Markup(render_scatter(rows)), **functions)


def render_scatter(rows: Sequence[LeaderboardRow]) -> str:
    """Erased against kept with intervals, as HTML; every point has a name and takes the keyboard's focus."""
    methods = sorted({e.method for e in rows})
    return _template("scatter.html.j2").render(rows=rows, said=format_rate, methods=methods, colours=METHOD_COLORS)


def _template(name: str) -> Template:
    loader = FileSystemLoader(Path(__file__).parent.parent / "templates")
    return Environment(loader=loader, autoescape=True, trim_blocks=True).get_template(name)
