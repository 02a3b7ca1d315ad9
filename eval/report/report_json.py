"""report.json: the verdict and all evidence for it, from an audit's result.json and thresholds; see report.schema.json."""

from collections.abc import Sequence
from pathlib import Path

from erasure.errors import UserError
from eval.records.audit_result import AuditResult
from eval.records.gates import Gate
from eval.records.models import BASE, ERASED, AuditedModel
from eval.records.rates import CountedRate, RateName
from eval.records.report import (
    CorrectedShare,
    RateReport,
    ReplacementLabel,
    Report,
    ReportedRate,
    ReportModels,
    ReportSuite,
    ReportVerdict,
    Thresholds,
)
from eval.report.conclusions import (
    concept_names,
    describe_audit,
    list_not_measured,
    list_threats,
    list_warnings,
    retained_by_label,
)
from eval.report.verdict_summary import advise, describe_gate, summarize_verdict
from eval.retrained.retrain_gap import retrain_gaps
from eval.scoring.gates import decide_verdict, gates_digest, unmeasured_reasons
from eval.scoring.rates import method_of
from eval.stats.intervals import DetectorCounts, rogan_gladen

SCHEMA = Path(__file__).parent / "report.schema.json"
RATE_TITLES = {
    RateName.UA: "erased",
    RateName.UA_SHOWN: "erased, where the base shows it",
    RateName.UA_NAMED: "erased, asked for by a synonym",
    RateName.UA_DESCRIBED: "erased, asked for by a description",
    RateName.UA_PERTURBED: "erased, asked for with misspellings",
    RateName.UA_REPLAYED: "erased, asked for by the prompts of a list",
    RateName.UA_ATTACKED: "erased, under the attack that broke most prompts",
    RateName.FR: "retained, the concept elsewhere",
    RateName.IRA: "retained, same kind",
    RateName.CRA: "retained, other kind",
    RateName.NRA: "retained, neighbors of the concept",
    RateName.IPA: "retained, the rest of the concept's own prompts",
    RateName.CRA_INCLUDED: "retained, other kind, with the concept's images",
}


def make_report(result: AuditResult, gates: Sequence[Gate], gates_source: str = "") -> Report:
    """Return what a reader has to know, in plain values: every rate with k and n, every interval with its method.

    Args:
        gates: thresholds of the verdict.
        gates_source: the suite or file that the gates came from, if not the audit's own.
    """
    verdict, job = decide_verdict(gates, result), result.job
    reasons = [*map(describe_gate, verdict.gates), *unmeasured_reasons(gates, result, verdict.unmeasured), *verdict.withheld]
    return Report(
        verdict=ReportVerdict(
            state=verdict.state, summary=summarize_verdict(verdict, job.tier), reasons=tuple(reasons), next_step=advise(verdict, result)
        ),
        conclusions=tuple(describe_audit(result)),
        gates=verdict.gates,
        thresholds=threshold_record(result, gates, gates_source),
        suite=ReportSuite(
            name=job.suite, file=result.suite_file or None, version=job.suite_version, tier=job.tier, format=result.suite_format
        ),
        models=ReportModels(base=job.base, edits=job.edits, strength=job.strength, compute=job.compute),
        concept=concept_names(result),
        only=job.only,
        methods=tuple(edit.method for edit in result.edits),
        rates=rate_reports(result),
        corrected=tuple(corrected_shares(result)),
        retained_by_label=tuple(retained_by_label(result)),
        attacks=result.attacks,
        as_published=result.published,
        replacement_labels=tuple(count_replacement_labels(result)),
        clip_alignment={model: figures.clip for model, figures in result.models.items()},
        clip_drop=result.clip_drop,
        retained_distance=result.pixel_distance,
        image_set_distances=result.image_set_distances,
        denoiser_divergences=result.denoiser_divergences,
        retrain_gap=retrain_gaps(result),
        cost=tuple(edit.cost for edit in result.edits),
        judges=result.judges,
        prompt_lists=result.prompt_lists or (),
        warnings=tuple(list_warnings(result)),
        threats_to_validity=tuple(list_threats(result)),
        not_measured=tuple(list_not_measured(result, verdict.unmeasured)),
    )


def threshold_record(result: AuditResult, gates: Sequence[Gate], gates_source: str = "") -> Thresholds:
    """Return the digest of the gates, the file they came from (None for a shipped suite's), and whether the audit was made with them."""
    digest = gates_digest(gates, result.excluded_by_suite)
    is_from_suite = digest == gates_digest(result.gates or ())
    file_name = result.suite_file if is_from_suite else Path(gates_source).name
    return Thresholds(digest=digest, from_suite=is_from_suite, file=file_name or None)


def rate_reports(result: AuditResult) -> tuple[RateReport, ...]:
    """Return every rate of the erased model, with that of every other model that has it, its interval and its paired difference."""
    reports = []
    for name, title in RATE_TITLES.items():
        rates = {model: figures.rates[name] for model, figures in result.models.items() if name in figures.rates}
        if ERASED not in rates:  # a retrained model, for its part, is not attacked
            continue
        by_model: dict[AuditedModel, ReportedRate] = {model: _reported_rate(rate) for model, rate in rates.items()}
        reports.append(
            RateReport(
                name=name,
                title=title,
                ci_method=method_of(rates[ERASED]),
                level=0.95,
                base=by_model.get(BASE),
                erased=by_model[ERASED],
                retrained={model: rate for model, rate in by_model.items() if model.is_retrained},
                paired=result.paired.get(name),
            )
        )
    return tuple(reports)


def _reported_rate(rate: CountedRate) -> ReportedRate:
    return ReportedRate(k=rate.k, n=rate.n, estimate=rate.estimate, ci_low=rate.low, ci_high=rate.high)


def corrected_shares(result: AuditResult) -> list[CorrectedShare]:
    """Return how often each model shows the concept, corrected for the judge's errors (Rogan and Gladen, 1978).

    Empty if nobody measured them.
    """
    errors = result.judge_errors
    if not errors:
        return []
    judge_counts = DetectorCounts(errors.true_positive, errors.positive, errors.true_negative, errors.negative)
    shares = []
    for model, figures in result.models.items():
        rate = figures.rates[RateName.UA]
        try:
            shares.append(CorrectedShare(model=model, **rogan_gladen(rate.n - rate.k, rate.n, judge_counts)._asdict()))
        except UserError as error:
            shares.append(CorrectedShare(model=model, warning=str(error)))
    return shares


def count_replacement_labels(result: AuditResult) -> list[ReplacementLabel]:
    """Count the judge's labels on the erased model's images of the target, most frequent first."""
    if not result.erased:
        return []
    labels, counts = result.erased.confusion.labels, result.erased.confusion.counts
    totals = [sum(counts[labels.index(target)][j] for target in result.targets) for j in range(len(labels))]
    n = max(sum(totals), 1)
    replacements = [ReplacementLabel(label=label, k=k, n=n) for label, k in zip(labels, totals, strict=True) if k]
    return sorted(replacements, key=lambda item: (-item.k, item.label))
