"""Images and attack rows on disk -> result.json: judged, counted, compared."""

from collections.abc import Sequence
from dataclasses import asdict

from erasure.edits import Edit
from erasure.edits.overlap import measure_overlap
from eval.auditing.plan import prompt_list_files
from eval.auditing.prepare import PreparedAudit
from eval.generation import Sample
from eval.judges.base import MissingWeights
from eval.metrics.image_distances import image_set_distances, retained_distance
from eval.records.attacks import AttackInfo, AttackRecord
from eval.records.audit_result import AuditedEdit, AuditResult, EditOverlap
from eval.records.convert import parse_record
from eval.records.distances import DenoiserDivergence
from eval.records.fields import ImagePart
from eval.records.models import AuditedModel
from eval.records.row_files import read_attack_rows
from eval.records.rows import SampleRow
from eval.retrained.divergences import measure_divergences
from eval.scoring.assembly import Measurements, assemble_result
from eval.scoring.attack_rates import count_attack_rates
from eval.scoring.judge_scores import score_samples


def make_result(prepared: PreparedAudit) -> AuditResult:
    """Judge the images on disk, count, measure distances, and return everything that result.json says."""
    plan, judges, out, missing = prepared.plan, prepared.judges, prepared.out, dict(prepared.missing)
    rows = score_samples(plan.samples, prepared.models, judges, out)
    attacks = load_attack_results(prepared, rows)
    parts: dict[ImagePart, list[Sample]] = {"retained": plan.plain_samples(False), "target": plan.plain_samples(True)}
    distances = None
    try:
        distances = image_set_distances(parts, prepared.models, prepared.extractor, out / "images")
    except MissingWeights as error:
        missing["features"] = str(error)
    measured = Measurements(
        attacks=attacks,
        pixel_distance=retained_distance(plan.retained_samples, out / "images"),
        image_set_distances=distances,
        denoiser_divergences=measure_plan_divergences(prepared),
        edit_overlaps=tuple(EditOverlap(**overlap) for overlap in measure_overlap(prepared.model, prepared.edits)),
        prompt_lists=prompt_list_files(plan.suite, plan.replay_origin),
        sample_sizes=plan.sample_sizes,
    )
    audited_edits = [edit_record(edit) for edit in prepared.edits]
    return assemble_result(out, plan.suite, prepared.job, plan.targets, audited_edits, rows, judges, missing, measured)


def load_attack_results(prepared: PreparedAudit, rows: Sequence[SampleRow]) -> tuple[AttackRecord, ...]:
    """Count the attack rates from the rows on disk."""
    attack_run, axis = prepared.attack_run, prepared.plan.axis
    if attack_run is None:
        return ()
    infos = [
        AttackInfo(name=name, paper=a.paper, threat=a.threat, control=a.control, fields=asdict(a))  # type: ignore[call-overload]  # dataclasses
        for name, a in attack_run.attacks.items()
    ]
    shown_unattacked: dict[str, dict[AuditedModel, bool]] = {sample.file_name: {} for sample in attack_run.samples}
    for row in rows:
        if row.file_name in shown_unattacked:
            shown_unattacked[row.file_name][row.model] = row.is_as_prompted(axis)
    return count_attack_rates(read_attack_rows(prepared.out / "attacks" / "attacks.jsonl"), infos, shown_unattacked)


def measure_plan_divergences(prepared: PreparedAudit) -> tuple[DenoiserDivergence, ...]:
    """Measure denoiser divergences in tier full or with a retrained model, if the edits have full strength and their own base."""
    plan, options = prepared.plan, prepared.options
    if options.strength != 1.0 or options.other_base or not (options.retrained or plan.tier == "full"):
        return ()
    edits_by_model = {stack.model: stack.edits for stack in prepared.stacks}
    return measure_divergences(prepared.model, prepared.job.base, edits_by_model, plan.plain_samples(True), plan.plain_samples(False))


def edit_record(edit: Edit) -> AuditedEdit:
    """Return what a result says about an audited edit."""
    info = {key: value for key, value in vars(edit.info).items() if key not in ("precision", "format")}
    return parse_record(info, AuditedEdit, edit.name)
