"""report.html: one self-contained file from an audit folder; no script and no request leaves it."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from erasure.run import write_bytes, write_json
from eval.audit import rows_of
from eval.gates import Gate
from eval.report.record import WORDS, record

HERE = Path(__file__).parent
MEANING = {
    "UA": "pictures asked for with the concept in which the judge no longer reads it",
    "UA_named": "the same, asked for by a synonym",
    "UA_described": "the same, asked for by a description that does not name it",
    "UA_mutated": "the same, asked for in spoiled spelling or shuffled words; where the base does not understand them, it proves nothing",
    "UA_replayed": "the same, asked for by the prompts of a list",
    "IRA": "pictures of the other {plural} that are still read as asked",
    "CRA": "pictures whose {cross} is still read as asked, the erased concept's own left out",
    "CRA_included": "the same with the erased concept's pictures counted too",
}
PLURAL = {"style": "styles", "object": "objects"}


def write(folder: Path, result: dict[str, Any], gates: Sequence[Gate], pairs: int = 8) -> Path:
    """Write report.json and render report.html into the folder of an audit.

    Args:
        result: of the audit.
        gates: thresholds of the verdict, as a rule the suite's.
        pairs: before/after pairs shown for the target, and as many for what should stay.
    """
    found = record(result, gates)
    write_json(folder / "report.json", found)
    rows = rows_of(folder)
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    page = environment.get_template("report.html.j2").render(
        result=result,
        report=found,
        rates=_rates(result),
        target_pairs=_pairs(folder, rows, result, pairs, target=True),
        kept_pairs=_pairs(folder, rows, result, pairs, target=False),
        matrix=result["models"]["erased"]["confusion"],
    )
    path = folder / "report.html"
    write_bytes(path, page.encode())
    return path


def _rates(result: dict[str, Any]) -> list[dict[str, Any]]:
    axis = result["axis"]
    words = {"plural": PLURAL[axis], "cross": "object" if axis == "style" else "style"}
    return [
        {
            "name": name,
            "label": WORDS[name] if name in ("UA", "IRA", "CRA") else "",
            "meaning": text.format(**words),
            "base": result["models"]["base"]["rates"][name],
            "erased": result["models"]["erased"]["rates"][name],
            "paired": result["paired"].get(name),
        }
        for name, text in MEANING.items()
        if name in result["models"]["erased"]["rates"]
    ]


def _pairs(folder: Path, rows: list[dict[str, Any]], result: dict[str, Any], count: int, target: bool) -> list[dict[str, Any]]:
    """Evenly spread before/after pairs, by position in the fixed case order and not by how they look."""
    axis = result["axis"]
    base = [r for r in rows if (r["model"], r["role"]) == ("base", "grid") and (r[axis] in result["targets"]) == target]
    erased = {r["image"].replace("images/erased", "images/base"): r for r in rows if r["model"] == "erased"}
    chosen = [base[round(i * (len(base) - 1) / max(count - 1, 1))] for i in range(min(count, len(base)))]
    return [{"prompt": b["prompt"], "base": _shown(folder, b), "erased": _shown(folder, erased[b["image"]])} for b in chosen]


def _shown(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    data = base64.b64encode((folder / row["image"]).read_bytes()).decode()
    return {"src": f"data:image/png;base64,{data}", "style": row["read"]["style"], "object": row["read"]["object"]}
