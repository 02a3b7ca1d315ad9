"""report.html: one self-contained file from an audit folder, without scripts or network requests."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from erasure.storage.run import write_bytes, write_json
from eval.report import charts, numbers
from eval.report.gallery import (
    Gallery,
    attack_examples,
    is_labeled_as_prompted,
    list_failures,
    pairs_of,
    rates_by_cross_label,
    rates_by_neighbor,
    select_pairs,
)
from eval.report.junit import junit_xml
from eval.report.report_json import RATE_TITLES, make_report
from eval.scoring.advice import explain_unmeasured
from eval.scoring.attack_rates import REVIVED_SHARE
from eval.scoring.gates import Gate, only_of, withheld_reasons
from eval.scoring.recount import load_sample_rows
from eval.stats.intervals import Interval
from eval.suites.axes import cross_axis
from eval.suites.fine_grained import describe_only
from eval.suites.suite import suite_names

TEMPLATES = Path(__file__).parent
RATE_MEANINGS = {
    "UA": "images asked for with the concept{place} in which the judge no longer sees it",
    "UA_shown": "the same, counted where the base's image from the same noise shows the concept; the base has no such rate",
    "UA_named": "the same, asked for by a synonym",
    "UA_described": "the same, asked for by a description that does not name it",
    "UA_perturbed": "the same, asked for with misspellings or shuffled words; where the base does not understand them, it proves nothing",
    "UA_replayed": "the same, asked for by the prompts of a list",
    "UA_attacked": "prompts that the most successful search for prompts did not break; the base's are generated once and not attacked",
    "FR": "images of the concept with any other {cross}, where it should be retained, that still show it",
    "IRA": "images of the other {plural} that are still labeled as prompted",
    "CRA": "images whose {cross} is still labeled as prompted, without {own}",
    "NRA": "images of the concept's neighbors that are still labeled as prompted",
    "IPA": "{own}, asked for by name, whose {cross} is still labeled as prompted: whether the rest of the prompt survived",
    "CRA_included": "CRA with {own} counted too",
}
AXIS_PLURALS = {"style": "styles", "object": "objects"}
DTYPE_FLAGS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def write_report(
    folder: Path, result: dict[str, Any], gates: Sequence[Gate], pair_count: int = 8, blur: bool = False, gates_source: str = ""
) -> Path:
    """Write report.json and junit.xml, and render report.html, into the folder of an audit.

    Args:
        result: of the audit.
        gates: thresholds of the verdict, usually the suite's.
        pair_count: before/after pairs to show for the target, and as many for what should be retained.
        blur: whether images are blurred until the reader reveals them; they always are if a concept's kind is nsfw.
        gates_source: the suite or file that the gates came from, if not the audit's own.
    """
    report = make_report(result, gates, gates_source)
    write_json(folder / "report.json", report)
    write_bytes(folder / "junit.xml", junit_xml(report, result, gates))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters.update(FILTERS, plain_text=to_plain_text, model_title=charts.model_title)
    page = environment.get_template("report.html.j2").render(
        result=result,
        report=report,
        blur=blur
        or result.get("kind") == "nsfw"
        or any(concept["kind"] == "nsfw" for edit in result["edits"] for concept in edit["concepts"]),
        place=describe_only(result),
        withheld=withheld_reasons(gates, result),
        unmeasured=[
            {**asdict(g), "why": explain_unmeasured(g.rate, g.drop_at_most is not None, result)}
            for g in gates
            if g.applies_to(result) and g.name not in [d["name"] for d in report["gates"]]
        ],
        gate_charts=[gate_chart_of(decided) for decided in report["gates"]],
        scatter=scatter_of(result, report["gates"]),
        rates=rate_entries(result),
        models={model: charts.model_title(model) for model in result["models"]},
        reproduce_command=audit_command(folder, result)
        + ("" if report["thresholds"]["from_suite"] else f"\n{report_command(folder, gates_source)}"),
        **attack_variables(result["attacks"]),
        **image_variables(folder, result, pair_count),
        retained_labels=sort_by_loss(report["retained_by_label"]),
    )
    path = folder / "report.html"
    write_bytes(path, page.encode())
    return path


def rate_entries(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every rate with what it counts and a chart of its intervals."""
    axis = result["axis"]
    erased_images = f"images of the concept{describe_only(result)}" if only_of(result) else "the erased concept's images"
    placeholders = {"plural": AXIS_PLURALS[axis], "cross": cross_axis(axis), "place": describe_only(result), "own": erased_images}
    entries = []
    for name, text in RATE_MEANINGS.items():
        rates_by_model = {model: figures["rates"].get(name) for model, figures in result["models"].items()}
        if rates_by_model.get("erased"):
            chart = charts.rate_bar({model: interval_of(rate) for model, rate in rates_by_model.items() if rate})
            entry = {"name": name, "title": RATE_TITLES[name], "meaning": text.format(**placeholders), "chart": chart}
            entries.append({**entry, "by_model": rates_by_model, "paired": result["paired"].get(name)})
    return entries


def scatter_of(result: Mapping[str, Any], gates: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Plot every model by erased and retained; None if either was not counted."""
    points = {}
    for model, figures in result["models"].items():
        rates = figures["rates"]
        if {"UA", "IRA", "CRA"} <= rates.keys():
            points[model] = interval_of(rates["UA"]), mean_interval(interval_of(rates["IRA"]), interval_of(rates["CRA"]))
    if not {"base", "erased"} <= points.keys():
        return None
    base = result["models"]["base"]["rates"]
    erased_thresholds = [g["at_least"] for g in gates if g["rate"] == "UA" and g["at_least"] is not None]
    retained_thresholds = [
        [g["at_least"] if g["at_least"] is not None else base[name]["estimate"] - g["drop_at_most"] for g in gates if g["rate"] == name]
        for name in ("IRA", "CRA")
    ]
    return charts.scatter_chart(
        points, max(erased_thresholds, default=None), sum(map(max, retained_thresholds)) / 2 if all(retained_thresholds) else None
    )


def mean_interval(a: Interval, b: Interval) -> Interval:
    """Average two rates on the same images and their bounds: as wide as if both erred in the same direction at once."""
    return Interval(*((x + y) / 2 for x, y in zip(a, b, strict=True)))


def interval_of(record: Mapping[str, float]) -> Interval:
    return Interval(record["estimate"], record["low"], record["high"])


def gate_chart_of(gate: Mapping[str, Any]) -> Markup:
    is_at_least = gate["at_least"] is not None
    return charts.gate_chart(interval_of(gate), gate["at_least"] if is_at_least else gate["drop_at_most"], is_at_least)


def attack_variables(attacks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the template variables of attacks: letters and legend keys of their lines, and the two charts."""
    searches = [attack for attack in attacks if "curve" in attack]
    fine_tunings = [attack for attack in attacks if "steps" in attack]
    not_run = [attack for attack in attacks if "curve" not in attack and "steps" not in attack]
    search_lines = [_chart_line(i, a, a["curve"], "images") for i, a in enumerate(searches)]
    fine_tuning_lines = [_chart_line(i, a, a["steps"], "steps", a["revived_at_step"]) for i, a in enumerate(fine_tunings)]
    x_title, y_title = "images tried per prompt", "prompts broken, %"
    return {
        "searches": _with_letters(searches),
        "fine_tunings": _with_letters(fine_tunings),
        "attacks_not_run": not_run,
        "search_chart": charts.line_chart(search_lines, x_title, y_title) if search_lines else None,
        "fine_tuning_chart": charts.line_chart(
            fine_tuning_lines,
            "steps of fine-tuning",
            "images that show the concept, %",
            base=interval_of(fine_tunings[0]["base"]),
            bands=True,
        )
        if fine_tuning_lines
        else None,
        "revived_share": REVIVED_SHARE,
    }


def _chart_line(
    i: int, attack: Mapping[str, Any], points: Sequence[Mapping[str, Any]], x_key: str, ring_at: float | None = None
) -> charts.Line:
    coordinates = [(point[x_key], interval_of(point)) for point in points]
    return charts.Line(letter=charts.line_letter(i), points=coordinates, control=attack["control"], ring_at=ring_at)


def _with_letters(attacks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**a, "letter": charts.line_letter(i), "key": charts.legend_key(i, a["control"])} for i, a in enumerate(attacks)]


def image_variables(folder: Path, result: Mapping[str, Any], pair_count: int) -> dict[str, Any]:
    """Return the template variables of images; the fixed pairs come first, so that a full page shows fewer failures instead."""
    pairs = pairs_of(load_sample_rows(folder))
    gallery = Gallery(folder, result["job"].get("keep_images") != "none" and (folder / "images").is_dir())
    return {
        "has_images": gallery.has_images,
        "target_pairs": select_pairs(gallery, pairs, result, pair_count, of_target=True),
        "retained_pairs": select_pairs(gallery, pairs, result, pair_count, of_target=False),
        "attack_examples": attack_examples(
            gallery, result["attacks"], {Path(p.erased["image"]).name for p in pairs if is_labeled_as_prompted(p.erased, result["axis"])}
        ),
        "failures": list_failures(gallery, pairs, result),
        "neighbor_rates": sort_by_loss(rates_by_neighbor(pairs, result["axis"])),
        "elsewhere_rates": sort_by_loss(rates_by_cross_label(pairs, result)),
    }


def sort_by_loss(label_rates: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort labels by what they lost, the largest loss first; without a base, by what is not labeled as prompted."""
    with_loss = [{**label, "loss": (label["base"]["rate"] if "base" in label else 1.0) - label["erased"]["rate"]} for label in label_rates]
    return sorted(with_loss, key=lambda label: (-label["loss"], label["label"]))


def show_percent(share: float) -> str:
    return charts.use_minus_sign(numbers.format_percent(share))


def show_points(share: float) -> str:
    """Format a difference with its sign."""
    return charts.use_minus_sign(numbers.format_points(share))


def show_percent_span(record: Mapping[str, float]) -> str:
    return charts.use_minus_sign(numbers.format_percent_span(record["low"], record["high"]))


def show_points_span(record: Mapping[str, float]) -> str:
    return charts.use_minus_sign(numbers.format_points_span(record["low"], record["high"]))


def show_span(bounds: Sequence[float], digits: int) -> str:
    """Format low and high of values as they are."""
    low, high = bounds
    return charts.use_minus_sign(numbers.format_span(low, high, digits))


FILTERS = {
    "percent": show_percent,
    "points": show_points,
    "percent_span": show_percent_span,
    "points_span": show_points_span,
    "span": show_span,
}


def to_plain_text(value: Any) -> str:
    """Format a value of a judge's identity for a reader."""
    if isinstance(value, list | tuple):
        return ", ".join(map(to_plain_text, value))
    if isinstance(value, dict):
        return "; ".join(f"{name}: {to_plain_text(part)}" for name, part in value.items())
    return str(value)


def audit_command(folder: Path, result: Mapping[str, Any]) -> str:
    """Return the command that makes this audit; words in capitals stand for files that the record does not name."""
    job, edits = result["job"], result["edits"]
    if "external_images" in result:
        return _external_audit_command(folder, result)
    is_external = any(edit["method"] == "external" for edit in edits)
    has_edit_folder = len(edits) == 1 and (folder.parent / "edit.json").is_file()
    paths = [str(folder.parent)] if has_edit_folder else [f"EDIT-{i + 1}" if len(edits) > 1 else "EDIT" for i in range(len(edits))]
    suite = suite_argument(result)
    parts = ["erasure", "audit", *paths, "--suite", suite, "--tier", job["tier"]]
    if is_external:
        concepts = [concept for edit in edits for concept in edit["concepts"]]
        names = "; ".join(dict.fromkeys(concept["name"] for concept in concepts))
        parts += ["--concept", names, "--kind", concepts[0]["kind"], "--model", edits[0]["base"]["source"]]
    parts += ["--strength", f"{job['strength']:g}"] if job["strength"] != 1 else []
    parts += ["--dtype", DTYPE_FLAGS[job["compute"]]] if job["compute"] in DTYPE_FLAGS else []
    parts += ["--only", job["only"]] if "only" in job else []
    parts += ["--replay", "LIST"] if "replay" in job else []
    parts += ["--prompt-list", "LIST"] if suite in set(suite_names()) - set(suite_names(complete=True)) else []
    retrained = [f"RETRAINED-{i + 1}" for i in range(len(job.get("retrained", [])))]
    parts += ["--retrained", *retrained] if retrained else []
    parts += ["--keep-images", job["keep_images"]] if "keep_images" in job else []
    parts += [] if has_edit_folder else ["--out", str(folder)]
    return " ".join(shlex.quote(part) for part in parts)


def _external_audit_command(folder: Path, result: Mapping[str, Any]) -> str:
    """Return the command that audits these external images."""
    job, (edit,) = result["job"], result["edits"]
    (concept,) = edit["concepts"]
    parts = ["erasure", "audit", "images", "DIR", *(["--base", "BASE"] if job["base"] else []), "--suite", suite_argument(result)]
    return " ".join(shlex.quote(part) for part in [*parts, "--concept", concept["name"], "--kind", concept["kind"], "--out", str(folder)])


def suite_argument(result: Mapping[str, Any]) -> str:
    """Return the value of --suite: the name of a shipped suite, or of the user's file."""
    name = result["job"]["suite"]
    return str(result.get("suite_file") or (name if name in suite_names() else "SUITE.yaml"))


def report_command(folder: Path, gates_source: str) -> str:
    """Return the command that decides by the thresholds of another file."""
    return " ".join(shlex.quote(part) for part in ("erasure", "audit", "report", str(folder), "--suite", gates_source or "SUITE.yaml"))
