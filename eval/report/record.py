"""report.json: the verdict and all evidence for it, from an audit's result.json and thresholds; report.schema.json describes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erasure.errors import UserError
from eval.report.sentences import concept, conclusions, doubts, kept_by_label, sentence, skipped, threats
from eval.retrained.gap import placed
from eval.scoring.gates import Gate, gates_digest, only_of, unmeasured, verdict
from eval.scoring.rates import method_of
from eval.stats.intervals import Measured, rogan_gladen

# 3: a rate has no base, and distance_kept is null, where the base's pictures were not given; 4: a way has bounds; 5: an open gate says what
# would decide it, and a rate has the interval that its gate is decided by; 6: it says which file the thresholds and the suite came from
VERSION = 6
SCHEMA = Path(__file__).parent / "report.schema.json"
WORDS = {
    "UA": "erased",
    "UA_shown": "erased, where the base shows it",
    "UA_named": "erased, asked for by a synonym",
    "UA_described": "erased, asked for by a description",
    "UA_mutated": "erased, asked for in spoiled spelling",
    "UA_replayed": "erased, asked for by prompts of a list",
    "UA_attacked": "erased, under the attack that broke most prompts",
    "FR": "kept, the concept elsewhere",
    "IRA": "kept, same kind",
    "CRA": "kept, other kind",
    "NRA": "kept, what is near the concept",
    "IPA": "kept, the rest of the concept's own prompts",
    "CRA_included": "kept, other kind, with the concept's pictures",
}


def record(result: dict[str, Any], gates: Sequence[Gate], by: str = "") -> dict[str, Any]:
    """What a reader has to know, in plain values: every rate with k and n, every interval with its method.

    Args:
        by: the suite or file that the gates came from, if not from the audit's own.
    """
    decided = verdict(gates, result)
    open_ = unmeasured(gates, result, decided["unmeasured"])
    reasons = [*map(sentence, decided["gates"]), *open_, *decided["withheld"]]
    job, models = result["job"], result["models"]
    rates = models.get("erased", {"rates": {}})["rates"]
    return {
        "schema_version": VERSION,
        "verdict": {"state": decided["state"], "reasons": reasons},
        "conclusions": conclusions(result),
        "gates": decided["gates"],
        "thresholds": thresholds(result, gates, by),
        "suite": {
            "name": job["suite"],
            "file": result.get("suite_file"),
            "version": job["suite_version"],
            "tier": job["tier"],
            "form": result.get("form", "unlearncanvas"),
        },
        "models": {"base": job["base"], "edits": job["edits"], "strength": job["strength"], "compute": job["compute"]},
        "concept": concept(result),
        **({"only": only_of(result)} if only_of(result) else {}),
        "methods": [edit["method"] for edit in result["edits"]],
        "rates": [rate(result, name) for name in WORDS if name in rates],
        "corrected": corrected(result),
        "kept_by_label": kept_by_label(result),
        "attacks": result["attacks"],
        "as_published": result.get("published") or None,
        "replaced_by": replaced(result),
        "clip_alignment": {model: figures["clip"] for model, figures in models.items()},
        "clip_drop": result.get("clip_drop", {}),  # none where nothing was counted
        "distance_kept": result["distance"],
        "distances": result["distances"],
        "divergence": result["divergence"],
        "placing": placed(result),
        "cost": [edit["cost"] for edit in result["edits"]],
        "detectors": result["judges"],
        "lists": result.get("lists", []),  # audits of earlier versions do not name them
        "doubts": doubts(result),
        "threats_to_validity": threats(result),
        "skipped": skipped(result, decided["unmeasured"]),
    }


def thresholds(result: dict[str, Any], gates: Sequence[Gate], by: str = "") -> dict[str, Any]:
    """Digest of the gates, the file that they came from (null for the shipped suite's), and whether the audit was made with them.

    What another suite sets apart moves rates as gates move thresholds, and counts among them.
    """
    apart = [{"apart": result["apart_by_suite"]}] if "apart_by_suite" in result else []
    digest = gates_digest([*gates, *apart])
    own = digest == gates_digest(result.get("gates", []))
    return {"digest": digest, "own": own, "file": (result.get("suite_file") if own else Path(by).name) or None}


def rate(result: dict[str, Any], name: str) -> dict[str, Any]:
    sides = {}
    for model, figures in result["models"].items():
        if (r := figures["rates"].get(name)) is None:  # an oracle is not attacked
            continue
        sides[model] = {"k": r["k"], "n": r["n"], "estimate": r["estimate"], "ci_low": r["low"], "ci_high": r["high"]}
    method = method_of(result["models"]["erased"]["rates"][name])
    return {"name": name, "words": WORDS[name], "ci_method": method, "level": 0.95, **sides, "paired": result["paired"].get(name)}


def corrected(result: dict[str, Any]) -> list[dict[str, Any]]:
    """How often the concept is shown, corrected for what is known of the judge's errors (Rogan and Gladen); empty where nothing is."""
    if not result["errors"] or not result["models"]:
        return []
    counts = Measured(*(result["errors"][key] for key in ("true_positive", "positive", "true_negative", "negative")))
    found = []
    for model, figures in result["models"].items():
        rate = figures["rates"]["UA"]
        try:
            found.append({"model": model, **rogan_gladen(rate["n"] - rate["k"], rate["n"], counts)._asdict()})
        except UserError as error:
            found.append({"model": model, "warning": str(error)})
    return found


def replaced(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the judge reads in the erased model's pictures of the target, most frequent first."""
    if not result["models"]:
        return []
    labels, counts = (result["models"]["erased"]["confusion"][key] for key in ("labels", "counts"))
    totals = [sum(counts[labels.index(t)][j] for t in result["targets"]) for j in range(len(labels))]
    n = max(sum(totals), 1)
    found = [{"label": label, "k": k, "n": n} for label, k in zip(labels, totals, strict=True) if k]
    return sorted(found, key=lambda item: (-item["k"], item["label"]))
