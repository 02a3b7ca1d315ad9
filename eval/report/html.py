"""report.html: one self-contained file from an audit folder, without scripts or network requests."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from erasure.storage.run import write_bytes, write_json
from eval.evidence.manifest import origin_now, write_manifest
from eval.records.audit_result import AuditResult
from eval.records.axes import cross_axis
from eval.records.convert import to_record
from eval.records.gates import Gate, GateDecision
from eval.records.models import BASE, ERASED
from eval.records.rates import RateName
from eval.records.report import LabelRates, Report
from eval.report import charts
from eval.report.commands import audit_command, report_command
from eval.report.filters import FILTERS
from eval.report.gallery import (
    Gallery,
    attack_examples,
    list_failures,
    pairs_of,
    rates_by_cross_label,
    rates_by_neighbor,
    select_pairs,
)
from eval.report.glossary import words_of
from eval.report.junit import junit_xml
from eval.report.page_records import ChartLine, LabelLoss, RateEntry, UnmeasuredGate
from eval.report.report_json import RATE_TITLES, make_report
from eval.scoring.advice import explain_unmeasured
from eval.scoring.attack_rates import REVIVED_SHARE
from eval.scoring.gates import applies_to, withheld_reasons
from eval.scoring.recount import load_sample_rows
from eval.stats.intervals import Interval
from eval.suites.fine_grained import describe_only

TEMPLATES = Path(__file__).parent
RATE_MEANINGS = {
    RateName.UA: "images asked for with the concept{place} in which the judge no longer sees it",
    RateName.UA_SHOWN: "the same, counted where the base's image from the same noise shows the concept; the base has no such rate",
    RateName.UA_NAMED: "the same, asked for by a synonym",
    RateName.UA_DESCRIBED: "the same, asked for by a description that does not name it",
    RateName.UA_PERTURBED: "the same, asked for with misspellings or shuffled words; "
    "where the base does not understand them, it proves nothing",
    RateName.UA_REPLAYED: "the same, asked for by the prompts of a list",
    RateName.UA_ATTACKED: "prompts that the most successful search for prompts did not break; "
    "the base's are generated once and not attacked",
    RateName.FR: "images of the concept with any other {cross}, where it should be retained, that still show it",
    RateName.IRA: "images of the other {plural} that are still labeled as prompted",
    RateName.CRA: "images whose {cross} is still labeled as prompted, without {own}",
    RateName.NRA: "images of the concept's neighbors that are still labeled as prompted",
    RateName.IPA: "{own}, asked for by name, whose {cross} is still labeled as prompted: whether the rest of the prompt survived",
    RateName.CRA_INCLUDED: "CRA with {own} counted too",
}
AXIS_PLURALS = {"style": "styles", "object": "objects"}


def write_report(
    folder: Path, result: AuditResult, gates: Sequence[Gate], pair_count: int = 8, blur: bool = False, gates_source: str = ""
) -> Path:
    """Write report.json, junit.xml, report.html and at last manifest.json, which lists all files, into the folder of an audit.

    Args:
        result: of the audit.
        gates: thresholds of the verdict, usually the suite's.
        pair_count: before/after pairs to show for the target, and as many for what should be retained.
        blur: whether images are blurred until the reader reveals them; they always are if a concept's kind is nsfw.
        gates_source: the suite or file that the gates came from, if not the audit's own.
    """
    report, origin = make_report(result, gates, gates_source), origin_now()
    write_json(folder / "report.json", to_record(report))
    write_bytes(folder / "junit.xml", junit_xml(report, result, gates))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters.update(FILTERS)
    page = environment.get_template("report.html.j2").render(
        result=result,
        report=report,
        blur=blur or result.kind == "nsfw" or any(concept.kind == "nsfw" for edit in result.edits for concept in edit.concepts),
        place=describe_only(result),
        withheld=withheld_reasons(gates, result),
        unmeasured=unmeasured_gates(report, result, gates),
        gate_charts=[gate_chart_of(decided) for decided in report.gates],
        scatter=scatter_of(result, report.gates),
        rates=rate_entries(result),
        models=tuple(result.models),
        reproduce_command=audit_command(folder, result)
        + ("" if report.thresholds.from_suite else f"\n{report_command(folder, gates_source)}"),
        made=origin,
        folder=shlex.quote(str(folder)),
        glossary=words_of(result),
        **attack_variables(result),
        **image_variables(folder, result, pair_count),
        retained_labels=sort_by_loss(report.retained_by_label),
    )
    path = folder / "report.html"
    write_bytes(path, page.encode())
    write_manifest(folder, origin)
    return path


def unmeasured_gates(report: Report, result: AuditResult, gates: Sequence[Gate]) -> list[UnmeasuredGate]:
    """Return the gates that apply to the audit and had nothing to measure."""
    decided = [gate.name for gate in report.gates]
    unmeasured = [gate for gate in gates if applies_to(gate, result) and gate.name not in decided]
    return [UnmeasuredGate(gate, explain_unmeasured(gate.rate, gate.drop_at_most is not None, result)) for gate in unmeasured]


def rate_entries(result: AuditResult) -> list[RateEntry]:
    """Return every rate with what it counts and a chart of its intervals."""
    axis = result.axis
    erased_images = f"images of the concept{describe_only(result)}" if result.job.only else "the erased concept's images"
    placeholders = {"plural": AXIS_PLURALS[axis], "cross": cross_axis(axis), "place": describe_only(result), "own": erased_images}
    entries = []
    for name, text in RATE_MEANINGS.items():
        rates_by_model = {model: figures.rates[name] for model, figures in result.models.items() if name in figures.rates}
        if ERASED in rates_by_model:
            chart = charts.rate_bar({model: rate.interval for model, rate in rates_by_model.items()})
            meaning = text.format(**placeholders)
            entries.append(RateEntry(name, RATE_TITLES[name], meaning, chart, rates_by_model, result.paired.get(name)))
    return entries


def scatter_of(result: AuditResult, gates: Sequence[GateDecision]) -> Markup | None:
    """Plot every model by erased and retained; None if either was not counted."""
    points = {}
    for model, figures in result.models.items():
        if {RateName.UA, RateName.IRA, RateName.CRA} <= figures.rates.keys():
            ira, cra = figures.rates[RateName.IRA].interval, figures.rates[RateName.CRA].interval
            points[model] = figures.rates[RateName.UA].interval, mean_interval(ira, cra)
    if not {BASE, ERASED} <= points.keys() or not result.base:
        return None
    erased_thresholds = [gate.at_least for gate in gates if gate.rate is RateName.UA and gate.at_least is not None]
    retained_thresholds = [
        [_retained_threshold(gate, result.base.rates[name].estimate) for gate in gates if gate.rate is name]
        for name in (RateName.IRA, RateName.CRA)
    ]
    return charts.scatter_chart(
        points, max(erased_thresholds, default=None), sum(map(max, retained_thresholds)) / 2 if all(retained_thresholds) else None
    )


def _retained_threshold(gate: GateDecision, base: float) -> float:
    """Return the rate that a gate requires, for a drop below that of the base."""
    return gate.at_least if gate.at_least is not None else base - (gate.drop_at_most or 0.0)


def mean_interval(a: Interval, b: Interval) -> Interval:
    """Average two rates on the same images and their bounds: as wide as if both erred in the same direction at once."""
    return Interval(*((x + y) / 2 for x, y in zip(a, b, strict=True)))


def gate_chart_of(gate: GateDecision) -> Markup:
    threshold = gate.at_least if gate.at_least is not None else gate.drop_at_most or 0.0
    return charts.gate_chart(gate.interval, threshold, gate.at_least is not None)


def attack_variables(result: AuditResult) -> dict[str, Any]:
    """Return the template variables of attacks: letters and legend keys of their lines, and the two charts."""
    searches, fine_tunings = result.searches, result.fine_tunings
    search_lines = [
        charts.Line(letter=charts.line_letter(i), points=[(point.images, point.interval) for point in attack.curve], control=attack.control)
        for i, attack in enumerate(searches)
    ]
    fine_tuning_lines = [
        charts.Line(
            letter=charts.line_letter(i),
            points=[(point.steps, point.interval) for point in attack.steps],
            control=attack.control,
            ring_at=attack.revived_at_step,
        )
        for i, attack in enumerate(fine_tunings)
    ]
    x_title, y_title = "images tried per prompt", "prompts broken, %"
    return {
        "searches": [ChartLine(a, charts.line_letter(i), charts.legend_key(i, a.control)) for i, a in enumerate(searches)],
        "fine_tunings": [ChartLine(a, charts.line_letter(i), charts.legend_key(i, a.control)) for i, a in enumerate(fine_tunings)],
        "attacks_not_run": result.attacks_not_run,
        "search_chart": charts.line_chart(search_lines, x_title, y_title) if search_lines else None,
        "fine_tuning_chart": charts.line_chart(
            fine_tuning_lines,
            "steps of fine-tuning",
            "images that show the concept, %",
            base=fine_tunings[0].base.interval,
            bands=True,
        )
        if fine_tuning_lines
        else None,
        "revived_share": REVIVED_SHARE,
    }


def image_variables(folder: Path, result: AuditResult, pair_count: int) -> dict[str, Any]:
    """Return the template variables of images; the fixed pairs come first, so that a full page shows fewer failures instead."""
    pairs = pairs_of(load_sample_rows(folder))
    gallery = Gallery(folder, result.job.keep_images == "all" and (folder / "images").is_dir())
    broken_without_attack = {pair.erased.file_name for pair in pairs if pair.erased.is_as_prompted(result.axis)}
    return {
        "has_images": gallery.has_images,
        "target_pairs": select_pairs(gallery, pairs, result, pair_count, of_target=True),
        "retained_pairs": select_pairs(gallery, pairs, result, pair_count, of_target=False),
        "attack_examples": attack_examples(gallery, result, broken_without_attack),
        "failures": list_failures(gallery, pairs, result),
        "neighbor_rates": sort_by_loss(rates_by_neighbor(pairs, result.axis)),
        "elsewhere_rates": sort_by_loss(rates_by_cross_label(pairs, result)),
    }


def sort_by_loss(label_rates: Sequence[LabelRates]) -> list[LabelLoss]:
    """Sort labels by what they lost, the largest loss first; without a base, by what is not labeled as prompted."""
    losses = [
        LabelLoss(rates.label, rates.base, rates.erased, (rates.base.rate if rates.base else 1.0) - rates.erased.rate)
        for rates in label_rates
    ]
    return sorted(losses, key=lambda label: (-label.loss, label.label))
