"""Two audits side by side: the same cases from the same noise, counted pair by pair."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erasure.errors import UserError
from eval.report.numbers import percent, points, points_span
from eval.scoring.counting import Row, paired
from eval.scoring.gates import only_of
from eval.scoring.judge_scores import AXES
from eval.scoring.recount import finished, rows_of
from eval.stats.intervals import holm

PICTURE = ("prompt", "seed", "role", "variant", "style", "object", "index")  # what makes two pictures the same but for the model


def compared(first: Path, second: Path) -> list[str]:
    """A Markdown table: each rate of both erased models, their paired difference with its interval, and McNemar's p after Holm.

    Raises:
        UserError: a folder without a finished audit, or one in which nothing was counted; audits that do not ask the same, or whose
            pictures were read by other judges.
    """
    folders = (first, second)
    results = [finished(folder) for folder in folders]
    for folder, result in zip(folders, results, strict=True):
        if not result["models"]:
            reasons = " ".join(result["missing"].values())
            raise UserError(f"{folder} is incomplete: nothing was counted in it. {reasons}".strip())
    asked = [_asked(result) for result in results]
    for what, one in asked[0].items():
        if one != (other := asked[1][what]):
            said = f"{what} is {_brief(one)} in the first and {_brief(other)} in the second"
            raise UserError(f"{first} and {second} cannot be paired: {said}.")
    rows = [_erased(folder) for folder in folders]
    _same_pictures(folders, rows)
    # paired is the second model minus the first
    both = [{**row, "model": name} for name, side in zip(("erased", "base"), rows, strict=True) for row in side]
    axis, targets, apart = results[0]["axis"], results[0]["targets"], tuple(results[0]["models"]["erased"]["apart"])
    tables = paired(both, axis, targets, apart, only_of(results[0]))
    if not tables:
        raise UserError(f"{first} and {second} have no picture in common that a rate counts; there is nothing to compare.")
    adjusted = holm([table["p"] for table in tables.values()])
    names = [" + ".join(e["method"] for e in r["edits"]) for r in results]
    lines = [f"| rate | {names[0]} (first) | {names[1]} (second) | first − second, points | p, Holm |", "|---|---|---|---|---|"]
    for (name, table), p in zip(tables.items(), adjusted, strict=True):
        sides = " | ".join(
            f"{percent(r['estimate'])} % ({r['k']}/{r['n']})" for r in (res["models"]["erased"]["rates"][name] for res in results)
        )
        change = f"{points(table['estimate'])} ({points_span(table['low'], table['high'])})"
        lines.append(f"| {name} | {sides} | {change} | {p:.2g} |")
    return lines


def _asked(result: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same in two audits, in words."""
    job = result["job"]
    return {
        "the base": job["base"],
        "the suite": (job["suite"], job["suite_version"]),
        "axis": job["axis"],
        "tier": job["tier"],
        "precision": job["compute"],
        "--only": only_of(result),
        "the replayed list": job.get("replay", "none"),
        "the target": result["targets"],
        "what the suite asks": job.get("suite_asks", ""),
        "what counts in no rate": sorted(result["models"]["erased"]["apart"]),
        **{f"the judge of {axis}": result["judges"].get(axis, "none") for axis in AXES},
    }


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:80] + "..."


def _erased(folder: Path) -> list[Row]:
    return [row for row in rows_of(folder) if row["model"] == "erased"]


def _same_pictures(folders: tuple[Path, Path], rows: list[list[Row]]) -> None:
    """Complains about pictures that only one audit has: cells that other edits erased too, other seeds of an answer set."""
    pictures = [{tuple(row[key] for key in PICTURE): row["image"] for row in side} for side in rows]
    for i, folder in enumerate(folders):
        if lacking := pictures[1 - i].keys() - pictures[i].keys():
            example = Path(pictures[1 - i][min(lacking)]).name
            raise UserError(f"{folder} lacks {len(lacking)} pictures of {folders[1 - i]}, such as {example}; only the same can be paired.")
