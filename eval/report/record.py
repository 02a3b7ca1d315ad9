"""report.json: the verdict and all evidence for it, from an audit's result.json and thresholds; report.schema.json describes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.gates import RATES, Gate, verdict

VERSION = 1
SCHEMA = Path(__file__).parent / "report.schema.json"
WORDS = {
    "UA": "erased",
    "UA_named": "erased, asked for by a synonym",
    "UA_described": "erased, asked for by a description",
    "UA_mutated": "erased, asked for in spoiled spelling",
    "UA_replayed": "erased, asked for by prompts of a list",
    "IRA": "kept, same kind",
    "CRA": "kept, other kind",
    "CRA_included": "kept, other kind, with the concept's pictures",
}


def record(result: dict[str, Any], gates: Sequence[Gate]) -> dict[str, Any]:
    """What a reader has to know, in plain values: every rate with k and n, every interval with its method."""
    decided = verdict(gates, result)
    job = result["job"]
    return {
        "schema_version": VERSION,
        "verdict": {"state": decided["state"], "reasons": [sentence(g) for g in decided["gates"]]},
        "gates": decided["gates"],
        "suite": {"name": job["suite"], "version": job["suite_version"], "tier": job["tier"]},
        "models": {"base": job["base"], "edits": job["edits"], "strength": job["strength"], "compute": job["compute"]},
        "concept": "; ".join(c["name"] for edit in result["edits"] for c in edit["concepts"]),
        "methods": [edit["method"] for edit in result["edits"]],
        "rates": [rate(result, name) for name in WORDS if name in result["models"]["erased"]["rates"]],
        "replaced_by": replaced(result),
        "clip_alignment": {model: result["models"][model]["clip"] for model in ("base", "erased")},
        "distance_kept": result["distance"],
        "cost": [edit["cost"] for edit in result["edits"]],
        "detectors": result["judges"],
        "doubts": doubts(result),
        "threats_to_validity": threats(result),
        "skipped": skipped(decided["unmeasured"], "UA_named" in result["models"]["erased"]["rates"]),
    }


def rate(result: dict[str, Any], name: str) -> dict[str, Any]:
    sides = {}
    for model in ("base", "erased"):
        r = result["models"][model]["rates"][name]
        sides[model] = {"k": r["k"], "n": r["n"], "estimate": r["estimate"], "ci_low": r["low"], "ci_high": r["high"]}
    return {"name": name, "words": WORDS[name], "ci_method": "Wilson", "level": 0.95, **sides, "paired": result["paired"].get(name)}


def sentence(gate: dict[str, Any]) -> str:
    """A gate in words."""
    if gate["at_least"] is not None:
        asked, what = f"at least {100 * gate['at_least']:g} %", f"{gate['rate']} is"
    else:
        asked, what = f"at most {100 * gate['drop_at_most']:g} points", f"{gate['rate']} dropped by"
    unit = "%" if gate["at_least"] is not None else "points"
    measured = f"{100 * gate['estimate']:.1f} {unit} ({100 * gate['low']:.1f} to {100 * gate['high']:.1f}, n = {gate['n']})"
    more = f"; about {gate['needed']:,} pictures would decide" if gate["needed"] else ""
    return f"{gate['state']}, {gate['name']}: {what} {measured}, asked for {asked}{more}."


def replaced(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the judge reads in the erased model's pictures of the target, most frequent first."""
    labels, counts = (result["models"]["erased"]["confusion"][key] for key in ("labels", "counts"))
    totals = [sum(counts[labels.index(t)][j] for t in result["targets"]) for j in range(len(labels))]
    n = max(sum(totals), 1)
    found = [{"label": label, "k": k, "n": n} for label, k in zip(labels, totals, strict=True) if k]
    return sorted(found, key=lambda item: (-item["k"], item["label"]))


def doubts(result: dict[str, Any]) -> list[str]:
    """Concepts that the base hardly knows, told by its predictions and by the judge."""
    found = [
        f"The name “{k['name']}” moves the base's predictions by {k['concept']:.4f}, a nonsense word by {k['nonsense']:.4f}."
        for edit in result["edits"]
        for k in edit["known"]
        if k["doubtful"]
    ]
    base = result["models"]["base"]["rates"]["UA"]
    if base["estimate"] > 0.5:
        shown = base["n"] - base["k"]
        found.append(f"The base itself shows the concept in only {shown} of {base['n']} pictures: there was little to erase.")
    return found


def threats(result: dict[str, Any]) -> list[str]:
    """What could make these figures mislead, in sentences."""
    rates = result["models"]["erased"]["rates"]
    small = [f"{name} on {rates[name]['n']}" for name in RATES if name in rates and rates[name]["n"] < 100]
    return [
        *([f"Fewer than 100 pictures stand behind a rate: {', '.join(small)}."] if small else []),
        "The rates are readings of classifiers that err; the base columns show what they read when nothing is erased.",
        "The intervals speak about other noise under these very prompts; other sentences can behave otherwise.",
    ]


def skipped(unmeasured: Sequence[str], aliases: bool) -> list[str]:
    """What was not measured, in sentences."""
    found = [f"The gate “{name}” had nothing to measure in this suite." for name in unmeasured]
    return [
        *found,
        "No attack was tried that searches for prompts. What plain prompts no longer draw can come back under others or fine-tuning.",
        *([] if aliases else ["This suite has no synonyms and no descriptions of the concept."]),
        "No model that never saw the concept was given, so nothing is said about the distance to one.",
    ]
