"""report.html: one self-contained file from an audit folder; no script and no request leaves it."""

import base64
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from erasure.run import read_json, write_bytes

HERE = Path(__file__).parent
NAMES = {"UA": "erased", "IRA": "kept, same kind", "CRA": "kept, other kind"}
MEANING = {
    "UA": "pictures asked for with the concept in which the judge no longer reads it",
    "IRA": "pictures of the other {plural} that are still read as asked",
    "CRA": "pictures whose {cross} is still read as asked, the erased concept's own left out",
    "CRA_included": "the same with the erased concept's pictures counted too",
}
PLURAL = {"style": "styles", "object": "objects"}


def write(folder: Path, pairs: int = 8) -> Path:
    """Render the report of a complete audit.

    Args:
        pairs: before/after pairs shown for the target, and as many for what should stay.
    """
    result = read_json(folder / "result.json")
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    page = environment.get_template("report.html.j2").render(
        result=result,
        rates=_rates(result),
        concept="; ".join(c["name"] for edit in result["edits"] for c in edit["concepts"]),
        doubts=_doubts(result),
        target_pairs=_pairs(folder, rows, result, pairs, target=True),
        kept_pairs=_pairs(folder, rows, result, pairs, target=False),
        replaced=_replaced(result),
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
            "label": NAMES.get(name, ""),
            "meaning": text.format(**words),
            "base": result["models"]["base"]["rates"][name],
            "erased": result["models"]["erased"]["rates"][name],
            "paired": result["paired"].get(name),
        }
        for name, text in MEANING.items()
        if name in result["models"]["erased"]["rates"]
    ]


def _doubts(result: dict[str, Any]) -> list[str]:
    """Concepts that the base hardly knows, told by its predictions and by the judge."""
    found = [
        f"The name “{k['name']}” moves the base's predictions by {k['concept']:.4f}, a nonsense word by {k['nonsense']:.4f}."
        for edit in result["edits"]
        for k in edit["known"]
        if k["doubtful"]
    ]
    base = result["models"]["base"]["rates"]["UA"]
    if base["estimate"] > 0.5:
        found.append(
            f"The base itself shows the concept in only {base['n'] - base['k']} of {base['n']} pictures: there was little to erase."
        )
    return found


def _pairs(folder: Path, rows: list[dict[str, Any]], result: dict[str, Any], count: int, target: bool) -> list[dict[str, Any]]:
    """Evenly spread before/after pairs, by position in the fixed case order and not by how they look."""
    axis = result["axis"]
    base = [r for r in rows if r["model"] == "base" and (r[axis] in result["targets"]) == target]
    erased = {r["image"].replace("images/erased", "images/base"): r for r in rows if r["model"] == "erased"}
    chosen = [base[round(i * (len(base) - 1) / max(count - 1, 1))] for i in range(min(count, len(base)))]
    return [{"prompt": b["prompt"], "base": _shown(folder, b), "erased": _shown(folder, erased[b["image"]])} for b in chosen]


def _shown(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    data = base64.b64encode((folder / row["image"]).read_bytes()).decode()
    return {"src": f"data:image/png;base64,{data}", "style": row["read"]["style"], "object": row["read"]["object"]}


def _replaced(result: dict[str, Any]) -> list[tuple[str, int, float]]:
    """What the judge reads in the erased model's pictures of the target, most frequent first."""
    labels, counts = (result["models"]["erased"]["confusion"][key] for key in ("labels", "counts"))
    totals = [sum(counts[labels.index(t)][j] for t in result["targets"]) for j in range(len(labels))]
    everything = max(sum(totals), 1)
    found = [(label, k, k / everything) for label, k in zip(labels, totals, strict=True) if k]
    return sorted(found, key=lambda item: -item[1])
