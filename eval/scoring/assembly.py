"""Rows, distances and attacks -> the result of an audit. Audits of edits and of external images are assembled here alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from eval.judges.base import Judge
from eval.records.attacks import AttackRecord
from eval.records.audit_result import AuditedEdit, AuditJob, AuditResult, EditOverlap, ExternalImagesSummary, PromptListFile
from eval.records.distances import DenoiserDivergence, ImageSetDistances
from eval.records.rates import MeanEstimate, RateName
from eval.records.rows import SampleRow
from eval.retrained.retrain_gap import model_distances
from eval.scoring.attack_rates import add_attacked_rate
from eval.scoring.counting import count_rates
from eval.scoring.judge_scores import judge_errors, samples_digest
from eval.scoring.published import published_figures
from eval.suites.formats import JudgePart, Suite


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What an audit measured, besides what is counted from its rows."""

    attacks: tuple[AttackRecord, ...] = ()
    pixel_distance: MeanEstimate | None = None
    image_set_distances: ImageSetDistances | None = None
    denoiser_divergences: tuple[DenoiserDivergence, ...] = ()
    edit_overlaps: tuple[EditOverlap, ...] = ()
    prompt_lists: tuple[PromptListFile, ...] | None = None
    external_images: ExternalImagesSummary | None = None
    sample_sizes: Mapping[str, Mapping[RateName, int]] = field(default_factory=dict)


def assemble_result(
    out: Path,
    suite: Suite,
    job: AuditJob,
    targets: Sequence[str],
    edits: Sequence[AuditedEdit],
    rows: Sequence[SampleRow],
    judges: Mapping[JudgePart, Judge],
    missing: Mapping[str, str],
    measured: Measurements,
) -> AuditResult:
    """Count the rows and return the whole result of an audit.

    Args:
        out: the audit's folder, with samples.jsonl.
        targets: labels on the job's axis that should be erased.
        judges: those that scored the rows, by what they score.
        missing: what has no weights, and why.
    """
    counts = add_attacked_rate(count_rates(rows, suite, job.axis, targets, job.only), measured.attacks)
    judge = judges.get(job.axis)
    result = AuditResult(
        **vars(counts),
        **vars(measured),
        tier=job.tier,
        job=job,
        samples_sha256=samples_digest(out),
        model_distances=model_distances(rows, job.axis, targets, suite.excluded, job.only) if job.retrained and judge else (),
        judges={name: judge.identity() for name, judge in judges.items()},
        gates=suite.gates,
        suite_file=suite.file,
        missing=missing,
        judge_errors=judge_errors(suite, job.axis, targets, judge) if judge else None,
        edits=tuple(edits),
        published=None,
    )
    return replace(result, published=published_figures(suite, rows, result))


def count_again(result: AuditResult, rows: Sequence[SampleRow], suite: Suite) -> AuditResult:
    """Count the rows of a finished audit again; `suite` may differ in what it excludes and in its protocol."""
    counts = add_attacked_rate(count_rates(rows, suite, result.axis, result.targets, result.job.only), result.attacks)
    distances = model_distances(rows, result.axis, result.targets, suite.excluded, result.job.only) if result.model_distances else ()
    recounted = replace(result, **vars(counts), model_distances=distances)  # excluded labels change IRA and CRA
    return replace(recounted, published=published_figures(suite, rows, recounted))
