"""Images and attack rows on disk -> result.json: judged, counted, compared."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from erasure.edits import Edit
from erasure.edits.overlap import measure_overlap
from eval.auditing.plan import prompt_list_records
from eval.auditing.prepare import PreparedAudit
from eval.judges.base import MissingWeights
from eval.metrics.image_distances import image_set_distances, retained_distance
from eval.retrained.divergences import measure_divergences
from eval.retrained.retrain_gap import model_distances
from eval.scoring.attack_rates import add_attacked_rate, count_attack_rates
from eval.scoring.counting import SampleRow, count_rates
from eval.scoring.judge_scores import judge_errors, read_jsonl, samples_digest, score_samples
from eval.scoring.published import published_figures


def assemble_result(prepared: PreparedAudit) -> dict[str, Any]:
    """Judge the images on disk, count, measure distances, and return everything that result.json says."""
    plan, judges, out, missing = prepared.plan, prepared.judges, prepared.out, dict(prepared.missing)
    rows = score_samples(plan.samples, prepared.model_names, judges, out)
    attacks = load_attack_results(prepared, rows)
    parts = {"retained": plan.plain_samples(False), "target": plan.plain_samples(True)}
    try:
        distances = image_set_distances(parts, prepared.model_names, prepared.extractor, out / "images")
    except MissingWeights as error:
        distances, missing["features"] = {}, str(error)
    result = {
        "tier": plan.tier,
        **add_attacked_rate(count_rates(rows, plan.suite, plan.axis, plan.targets, plan.only), attacks),
        **(
            {"model_distances": model_distances(rows, plan.axis, plan.targets, plan.suite.excluded, plan.only)}
            if prepared.options.retrained and plan.axis in judges
            else {}
        ),
        "job": prepared.job,
        "samples_sha256": samples_digest(out),
        "prompt_lists": prompt_list_records(plan.suite, plan.replay_origin),
        "attacks": attacks,
        "pixel_distance": retained_distance(plan.retained_samples, out / "images"),
        "image_set_distances": distances,
        "denoiser_divergences": measure_plan_divergences(prepared),
        "judges": {name: judge.identity() for name, judge in judges.items()},
        "gates": [asdict(gate) for gate in plan.suite.gates],
        **({"suite_file": plan.suite.file} if plan.suite.file else {}),
        "missing": missing,
        "judge_errors": judge_errors(plan.suite, plan.axis, plan.targets, judges[plan.axis]) if plan.axis in judges else None,
        "edits": [edit_record(edit) for edit in prepared.edits],
        "edit_overlaps": measure_overlap(prepared.model, prepared.edits),
        "sample_sizes": plan.sample_sizes,
    }
    return {**result, "published": published_figures(plan.suite, rows, result)}


def load_attack_results(prepared: PreparedAudit, rows: Sequence[SampleRow]) -> list[dict[str, Any]]:
    """Count the attack rates from the rows on disk."""
    attack_run, axis = prepared.attack_run, prepared.plan.axis
    if attack_run is None:
        return []
    attack_facts = {
        name: {"paper": a.paper, "threat": a.threat, "control": a.control, "fields": asdict(a)}  # type: ignore[call-overload]  # dataclasses
        for name, a in attack_run.attacks.items()
    }
    shown_unattacked: dict[str, dict[str, bool]] = {sample.file_name: {} for sample in attack_run.samples}
    for row in rows:
        name = Path(row["image"]).name
        if name in shown_unattacked:
            shown_unattacked[name][row["model"]] = row["scores"][axis]["label"] == row[axis]
    return count_attack_rates(read_jsonl(prepared.out / "attacks" / "attacks.jsonl"), attack_facts, shown_unattacked)


def measure_plan_divergences(prepared: PreparedAudit) -> list[dict[str, Any]]:
    """Measure denoiser divergences in tier full or with a retrained model, if the edits have full strength and their own base."""
    plan, options = prepared.plan, prepared.options
    if options.strength != 1.0 or options.other_base or not (options.retrained or plan.tier == "full"):
        return []
    edits_by_model = {stack.name: stack.edits for stack in prepared.stacks}
    return measure_divergences(prepared.model, prepared.job["base"], edits_by_model, plan.plain_samples(True), plan.plain_samples(False))


def edit_record(edit: Edit) -> dict[str, Any]:
    """Return what a result says about an audited edit."""
    info = edit.info
    return {
        "method": info.method,
        "fields": info.fields,
        "concepts": info.concepts,
        "seed": info.seed,
        "cost": info.cost,
        "base": info.base,
        "versions": info.versions,
        "concept_checks": info.concept_checks,
        "notes": info.notes,
        "product": info.product,
    }
