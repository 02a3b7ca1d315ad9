"""Two audits side by side: the same cases from the same noise, counted pair by pair."""

from pathlib import Path

from erasure.errors import UserError
from eval.counting import paired
from eval.finished import finished, rows_of
from eval.gates import only_of
from eval.statistics import holm

SAME = ("base", "suite", "suite_version", "axis", "tier", "compute", "only")


def compared(first: Path, second: Path) -> list[str]:
    """A Markdown table: each rate of both erased models, their paired difference with its interval, and McNemar's p after Holm.

    Raises:
        UserError: a folder without a finished audit, or audits that do not ask the same.
    """
    results = [finished(folder) for folder in (first, second)]
    for key in SAME:
        one, other = (r["job"].get(key, "") for r in results)
        if one != other:
            raise UserError(f"{first} and {second} cannot be paired: {key} is {one} in the first and {other} in the second.")
    if results[0]["targets"] != results[1]["targets"]:
        raise UserError(
            f"{first} audits {results[0]['targets']}, {second} audits {results[1]['targets']}; only one and the same can be paired."
        )
    apart = tuple(results[0]["models"]["erased"]["apart"])
    rows = [
        {**row, "model": name}
        for name, folder in (("base", second), ("erased", first))
        for row in rows_of(folder)
        if row["model"] == "erased"
    ]
    tables = paired(rows, results[0]["axis"], results[0]["targets"], apart, only_of(results[0]))
    adjusted = holm([table["p"] for table in tables.values()])
    names = [" + ".join(e["method"] for e in r["edits"]) for r in results]
    lines = [f"| rate | {names[0]} (first) | {names[1]} (second) | first − second, points | p, Holm |", "|---|---|---|---|---|"]
    for (name, table), p in zip(tables.items(), adjusted, strict=True):
        sides = " | ".join(
            f"{100 * r['estimate']:.1f} % ({r['k']}/{r['n']})" for r in (res["models"]["erased"]["rates"][name] for res in results)
        )
        low, middle, high = (100 * table[key] for key in ("low", "estimate", "high"))
        lines.append(f"| {name} | {sides} | {middle:+.1f} ({low:+.1f} to {high:+.1f}) | {p:.2g} |")
    return lines
