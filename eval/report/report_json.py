"""report.json: the verdict and all evidence for it, from an audit's result.json and thresholds; see report.schema.json."""

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

# 3: a rate has no base, and the pixel distance is null, if the base's images were not given; 4: the gap closed has bounds; 5: an open gate
# says what would decide it, and a rate has the interval that decides its gate; 6: it names the file of the thresholds and of the suite;
# 7: keys and values have new names
SCHEMA_VERSION = 7
SCHEMA = Path(__file__).parent / "report.schema.json"
RATE_TITLES = {
    "UA": "erased",
    "UA_shown": "erased, where the base shows it",
    "UA_named": "erased, asked for by a synonym",
    "UA_described": "erased, asked for by a description",
    "UA_perturbed": "erased, asked for with misspellings",
    "UA_replayed": "erased, asked for by the prompts of a list",
    "UA_attacked": "erased, under the attack that broke most prompts",
    "FR": "retained, the concept elsewhere",
    "IRA": "retained, same kind",
    "CRA": "retained, other kind",
    "NRA": "retained, neighbors of the concept",
    "IPA": "retained, the rest of the concept's own prompts",
    "CRA_included": "retained, other kind, with the concept's images",
}


def make_report(result: dict[str, Any], gates: Sequence[Gate], gates_source: str = "") -> dict[str, Any]:
    """Return what a reader has to know, in plain values: every rate with k and n, every interval with its method.

    Args:
        result: of the audit.
        gates: thresholds of the verdict.
        gates_source: the suite or file that the gates came from, if not the audit's own.
    """
    decision = decide_verdict(gates, result)
    reasons = [
        *map(describe_gate, decision["gates"]),
        *unmeasured_reasons(gates, result, decision["unmeasured"]),
        *decision["withheld"],
    ]
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
            "format": result.get("suite_format", "grid"),
        },
        "models": {"base": job["base"], "edits": job["edits"], "strength": job["strength"], "compute": job["compute"]},
        "concept": concept_names(result),
        **({"only": only_of(result)} if only_of(result) else {}),
        "methods": [edit["method"] for edit in result["edits"]],
        "rates": [rate_record(result, name) for name in RATE_TITLES if name in rates],
        "corrected": corrected_shares(result),
        "retained_by_label": retained_by_label(result),
        "attacks": result["attacks"],
        "as_published": result.get("published") or None,
        "replacement_labels": count_replacement_labels(result),
        "clip_alignment": {model: figures["clip"] for model, figures in models.items()},
        "clip_drop": result.get("clip_drop", {}),  # empty if nothing was counted
        "retained_distance": result["pixel_distance"],
        "image_set_distances": result["image_set_distances"],
        "denoiser_divergences": result["denoiser_divergences"],
        "retrain_gap": retrain_gaps(result),
        "cost": [edit["cost"] for edit in result["edits"]],
        "judges": result["judges"],
        "prompt_lists": result.get("prompt_lists", []),  # not in audits of earlier versions
        "warnings": list_warnings(result),
        "threats_to_validity": list_threats(result),
        "not_measured": list_not_measured(result, decision["unmeasured"]),
    }


def threshold_record(result: dict[str, Any], gates: Sequence[Gate], gates_source: str = "") -> dict[str, Any]:
    """Return the digest of the gates, the file they came from (null for a shipped suite's), and whether the audit was made with them.

    The labels that another suite excludes change rates as gates change thresholds, so they count among the gates.
    """
    excluded = [{"excluded": result["excluded_by_suite"]}] if "excluded_by_suite" in result else []
    digest = gates_digest([*gates, *excluded])
    is_from_suite = digest == gates_digest(result.get("gates", []))
    file_name = result.get("suite_file") if is_from_suite else Path(gates_source).name
    return {"digest": digest, "from_suite": is_from_suite, "file": file_name or None}


def rate_record(result: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a rate of every model with its interval and its paired difference."""
    counts_by_model = {}
    for model, figures in result["models"].items():
        if (rate := figures["rates"].get(name)) is None:  # a retrained model is not attacked
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
        "title": RATE_TITLES[name],
        "ci_method": method,
        "level": 0.95,
        **counts_by_model,
        "paired": result["paired"].get(name),
    }


def corrected_shares(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return how often each model shows the concept, corrected for the judge's errors (Rogan and Gladen, 1978).

    Empty if nobody measured them.
    """
    if not result["judge_errors"] or not result["models"]:
        return []
    judge_counts = DetectorCounts(*(result["judge_errors"][key] for key in ("true_positive", "positive", "true_negative", "negative")))
    records = []
    for model, figures in result["models"].items():
        rate = figures["rates"]["UA"]
        try:
            records.append({"model": model, **rogan_gladen(rate["n"] - rate["k"], rate["n"], judge_counts)._asdict()})
        except UserError as error:
            records.append({"model": model, "warning": str(error)})
    return records


def count_replacement_labels(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Count the judge's labels on the erased model's images of the target, most frequent first."""
    if not result["models"]:
        return []
    labels, counts = (result["models"]["erased"]["confusion"][key] for key in ("labels", "counts"))
    totals = [sum(counts[labels.index(t)][j] for t in result["targets"]) for j in range(len(labels))]
    n = max(sum(totals), 1)
    records = [{"label": label, "k": k, "n": n} for label, k in zip(labels, totals, strict=True) if k]
    return sorted(records, key=lambda item: (-item["k"], item["label"]))
