"""report.json: the verdict and all evidence for it, from an audit's result.json and thresholds; report.schema.json describes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erasure.errors import UserError
from eval.report.conclusions import (
    concept_names,
    describe_audit,
    describe_gate,
    list_not_measured,
    list_threats,
    list_warnings,
    retained_by_label,
)
from eval.retrained.retrain_gap import retrain_gaps
from eval.scoring.gates import Gate, decide_verdict, gates_digest, only_of, unmeasured_reasons
from eval.scoring.rates import method_of
from eval.stats.intervals import DetectorCounts, rogan_gladen

# 3: a rate has no base, and distance_kept is null, where the base's pictures were not given; 4: a way has bounds; 5: an open gate says what
# would decide it, and a rate has the interval that its gate is decided by; 6: it says which file the thresholds and the suite came from
SCHEMA_VERSION = 6
SCHEMA = Path(__file__).parent / "report.schema.json"
RATE_TITLES = {
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


def make_report(result: dict[str, Any], gates: Sequence[Gate], gates_source: str = "") -> dict[str, Any]:
    """What a reader has to know, in plain values: every rate with k and n, every interval with its method.

    Args:
        by: the suite or file that the gates came from, if not from the audit's own.
    """
    decision = decide_verdict(gates, result)
    unmeasured_reasons = unmeasured_reasons(gates, result, decision["unmeasured"])
    reasons = [*map(describe_gate, decision["gates"]), *unmeasured_reasons, *decision["withheld"]]
    job, models = result["job"], result["models"]
    rates = models.get("erased", {"rates": {}})["rates"]
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": {"state": decision["state"], "reasons": reasons},
        "conclusions": describe_audit(result),
        "gates": decision["gates"],
        "thresholds": threshold_record(result, gates, gates_source),
        "suite": {
            "name": job["suite"],
            "file": result.get("suite_file"),
            "version": job["suite_version"],
            "tier": job["tier"],
            "form": result.get("form", "unlearncanvas"),
        },
        "models": {"base": job["base"], "edits": job["edits"], "strength": job["strength"], "compute": job["compute"]},
        "concept": concept_names(result),
        **({"only": only_of(result)} if only_of(result) else {}),
        "methods": [edit["method"] for edit in result["edits"]],
        "rates": [rate_record(result, name) for name in RATE_TITLES if name in rates],
        "corrected": corrected_shares(result),
        "kept_by_label": retained_by_label(result),
        "attacks": result["attacks"],
        "as_published": result.get("published") or None,
        "replaced_by": replacement_labels(result),
        "clip_alignment": {model: figures["clip"] for model, figures in models.items()},
        "clip_drop": result.get("clip_drop", {}),  # none where nothing was counted
        "distance_kept": result["distance"],
        "distances": result["distances"],
        "divergence": result["divergence"],
        "placing": retrain_gaps(result),
        "cost": [edit["cost"] for edit in result["edits"]],
        "detectors": result["judges"],
        "lists": result.get("lists", []),  # audits of earlier versions do not name them
        "doubts": list_warnings(result),
        "threats_to_validity": list_threats(result),
        "skipped": list_not_measured(result, decision["unmeasured"]),
    }


def threshold_record(result: dict[str, Any], gates: Sequence[Gate], gates_source: str = "") -> dict[str, Any]:
    """Digest of the gates, the file that they came from (null for the shipped suite's), and whether the audit was made with them.

    What another suite sets apart moves rates as gates move thresholds, and counts among them.
    """
    excluded = [{"apart": result["apart_by_suite"]}] if "apart_by_suite" in result else []
    digest = gates_digest([*gates, *excluded])
    is_own = digest == gates_digest(result.get("gates", []))
    return {"digest": digest, "own": is_own, "file": (result.get("suite_file") if is_own else Path(gates_source).name) or None}


def rate_record(result: dict[str, Any], name: str) -> dict[str, Any]:
    counts_by_model = {}
    for model, figures in result["models"].items():
        if (rate := figures["rates"].get(name)) is None:  # an oracle is not attacked
            continue
        counts_by_model[model] = {
            "k": rate["k"],
            "n": rate["n"],
            "estimate": rate["estimate"],
            "ci_low": rate["low"],
            "ci_high": rate["high"],
        }
    method = method_of(result["models"]["erased"]["rates"][name])
    return {
        "name": name,
        "words": RATE_TITLES[name],
        "ci_method": method,
        "level": 0.95,
        **counts_by_model,
        "paired": result["paired"].get(name),
    }


def corrected_shares(result: dict[str, Any]) -> list[dict[str, Any]]:
    """How often the concept is shown, corrected for what is known of the judge's errors (Rogan and Gladen); empty where nothing is."""
    if not result["errors"] or not result["models"]:
        return []
    judge_counts = DetectorCounts(*(result["errors"][key] for key in ("true_positive", "positive", "true_negative", "negative")))
    records = []
    for model, figures in result["models"].items():
        rate = figures["rates"]["UA"]
        try:
            records.append({"model": model, **rogan_gladen(rate["n"] - rate["k"], rate["n"], judge_counts)._asdict()})
        except UserError as error:
            records.append({"model": model, "warning": str(error)})
    return records


def replacement_labels(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the judge reads in the erased model's pictures of the target, most frequent first."""
    if not result["models"]:
        return []
    labels, counts = (result["models"]["erased"]["confusion"][key] for key in ("labels", "counts"))
    totals = [sum(counts[labels.index(t)][j] for t in result["targets"]) for j in range(len(labels))]
    n = max(sum(totals), 1)
    records = [{"label": label, "k": k, "n": n} for label, k in zip(labels, totals, strict=True) if k]
    return sorted(records, key=lambda item: (-item["k"], item["label"]))
