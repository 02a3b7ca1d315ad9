"""report.html: one self-contained file from an audit folder; no script in it and no request leaves it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from erasure.storage.run import write_bytes, write_json
from eval.report import charts as drawing
from eval.report import numbers as printed
from eval.report.gallery import (
    Gallery,
    attack_examples,
    is_read_as_asked,
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
from eval.suites.fine_grained import describe_only
from eval.suites.prompt_list_suite import cross_axis
from eval.suites.suite import suite_names

TEMPLATES = Path(__file__).parent
RATE_MEANINGS = {
    "UA": "pictures asked for with the concept{place} in which the judge no longer reads it",
    "UA_shown": "the same, counted where the base's picture from the same noise shows the concept; the base has none by definition",
    "UA_named": "the same, asked for by a synonym",
    "UA_described": "the same, asked for by a description that does not name it",
    "UA_mutated": "the same, asked for in spoiled spelling or shuffled words; where the base does not understand them, it proves nothing",
    "UA_replayed": "the same, asked for by the prompts of a list",
    "UA_attacked": "prompts that the most successful search for prompts did not break; the base's are drawn once and not attacked",
    "FR": "pictures of the concept with any other {cross}, where it was meant to stay, in which it is still read",
    "IRA": "pictures of the other {plural} that are still read as asked",
    "CRA": "pictures whose {cross} is still read as asked, {own} left out",
    "NRA": "pictures of what is near the concept that are still read as asked",
    "IPA": "{own}, asked for by name, whose {cross} is still read as asked: whether the rest of the sentence survived",
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
        gates: thresholds of the verdict, as a rule the suite's.
        pairs: before/after pairs shown for the target, and as many for what should stay.
        blur: whether pictures are blurred until the reader asks for them; they always are where the kind of a concept is nsfw.
        by: the suite or file that the gates came from, if not from the audit's own.
    """
    report = make_report(result, gates, gates_source)
    write_json(folder / "report.json", report)
    write_bytes(folder / "junit.xml", junit_xml(report, result, gates))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters.update(FILTERS, plain=to_plain_text, called=drawing.model_title)
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
        gate_bars=[gate_chart_of(decided) for decided in report["gates"]],
        scatter=scatter_of(result, report["gates"]),
        rates=rate_entries(result),
        sides={side: drawing.model_title(side) for side in result["models"]},
        again=audit_command(folder, result) + ("" if report["thresholds"]["own"] else f"\n{report_command(folder, gates_source)}"),
        **attack_variables(result["attacks"]),
        **image_variables(folder, result, pair_count),
        kept_labels=sort_by_loss(report["kept_by_label"]),
    )
    path = folder / "report.html"
    write_bytes(path, page.encode())
    return path


def rate_entries(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every rate with what it counts and a picture of its intervals."""
    axis = result["axis"]
    erased_images = f"pictures of the concept{describe_only(result)}" if only_of(result) else "the erased concept's pictures"
    placeholders = {"plural": AXIS_PLURALS[axis], "cross": cross_axis(axis), "place": describe_only(result), "own": erased_images}
    entries = []
    for name, text in RATE_MEANINGS.items():
        rates_by_model = {model: figures["rates"].get(name) for model, figures in result["models"].items()}
        if rates_by_model.get("erased"):
            chart = drawing.rate_bar({model: interval_of(rate) for model, rate in rates_by_model.items() if rate})
            entry = {"name": name, "words": RATE_TITLES[name], "meaning": text.format(**placeholders), "bar": chart}
            entries.append({**entry, "sides": rates_by_model, "paired": result["paired"].get(name)})
    return entries


def scatter_of(result: Mapping[str, Any], gates: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Every model by what is gone and what is kept; None where one of both was not counted."""
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
    return drawing.scatter_chart(
        points, max(erased_thresholds, default=None), sum(map(max, retained_thresholds)) / 2 if all(retained_thresholds) else None
    )


def mean_interval(a: Interval, b: Interval) -> Interval:
    """Of two rates on the same pictures, with the mean of their bounds: as wide as if both erred in the same direction at once."""
    return Interval(*((x + y) / 2 for x, y in zip(a, b, strict=True)))


def interval_of(record: Mapping[str, float]) -> Interval:
    return Interval(record["estimate"], record["low"], record["high"])


def gate_chart_of(gate: Mapping[str, Any]) -> Markup:
    is_at_least = gate["at_least"] is not None
    return drawing.gate_chart(interval_of(gate), gate["at_least"] if is_at_least else gate["drop_at_most"], is_at_least)


def attack_variables(attacks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Attacks with the letters and looks of their lines, and the two charts."""
    searches = [attack for attack in attacks if "curve" in attack]
    tunings = [attack for attack in attacks if "steps" in attack]
    not_run = [attack for attack in attacks if "curve" not in attack and "steps" not in attack]
    search_lines = [_chart_line(i, a, a["curve"], "pictures") for i, a in enumerate(searches)]
    tuning_lines = [_chart_line(i, a, a["steps"], "steps", a["revived"]) for i, a in enumerate(tunings)]
    x_title, y_title = "pictures tried per prompt", "prompts broken, %"
    return {
        "searches": _with_letters(searches),
        "tunings": _with_letters(tunings),
        "idle_attacks": not_run,
        "search_chart": drawing.line_chart(search_lines, x_title, y_title) if search_lines else None,
        "tuning_chart": drawing.line_chart(
            tuning_lines, "steps of fine-tuning", "pictures that show the concept, %", base=interval_of(tunings[0]["base"]), bands=True
        )
        if tuning_lines
        else None,
        "revived_share": REVIVED_SHARE,
    }


def _chart_line(
    i: int, attack: Mapping[str, Any], points: Sequence[Mapping[str, Any]], x_key: str, ring_at: float | None = None
) -> drawing.Line:
    coordinates = [(point[x_key], interval_of(point)) for point in points]
    return drawing.Line(letter=drawing.line_letter(i), points=coordinates, control=attack["control"], ring_at=ring_at)


def _with_letters(attacks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**a, "letter": drawing.line_letter(i), "key": drawing.legend_key(i, a["control"])} for i, a in enumerate(attacks)]


def image_variables(folder: Path, result: Mapping[str, Any], pair_count: int) -> dict[str, Any]:
    """The pictures of the page, the fixed pairs first, so that a full album costs the drill-down."""
    pairs = pairs_of(load_sample_rows(folder))
    gallery = Gallery(folder, result["job"].get("keep") != "none" and (folder / "images").is_dir())
    return {
        "pictures": gallery.has_images,
        "target_pairs": select_pairs(gallery, pairs, result, pair_count, of_target=True),
        "kept_pairs": select_pairs(gallery, pairs, result, pair_count, of_target=False),
        "examples": attack_examples(
            gallery, result["attacks"], {Path(p.erased["image"]).name for p in pairs if is_read_as_asked(p.erased, result["axis"])}
        ),
        "drill": list_failures(gallery, pairs, result),
        "neighbours": sort_by_loss(rates_by_neighbor(pairs, result["axis"])),
        "elsewhere": sort_by_loss(rates_by_cross_label(pairs, result)),
    }


def sort_by_loss(label_rates: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Labels with what they lost, the largest loss first; without a base, what is not read as asked."""
    with_loss = [{**label, "lost": (label["base"]["rate"] if "base" in label else 1.0) - label["erased"]["rate"]} for label in label_rates]
    return sorted(with_loss, key=lambda label: (-label["lost"], label["label"]))


def show_percent(share: float) -> str:
    return drawing.use_minus_sign(printed.format_percent(share))


def show_points(share: float) -> str:
    """A difference with its sign."""
    return drawing.use_minus_sign(printed.format_points(share))


def show_percent_span(record: Mapping[str, float]) -> str:
    return drawing.use_minus_sign(printed.format_percent_span(record["low"], record["high"]))


def show_points_span(record: Mapping[str, float]) -> str:
    return drawing.use_minus_sign(printed.format_points_span(record["low"], record["high"]))


def show_span(bounds: Sequence[float], digits: int) -> str:
    """Low and high of values as they are."""
    low, high = bounds
    return drawing.use_minus_sign(printed.format_span(low, high, digits))


FILTERS = {
    "percent": show_percent,
    "points": show_points,
    "percent_span": show_percent_span,
    "points_span": show_points_span,
    "span": show_span,
}


def to_plain_text(value: Any) -> str:
    """A value of a judge's identity, for people."""
    if isinstance(value, list | tuple):
        return ", ".join(map(to_plain_text, value))
    if isinstance(value, dict):
        return "; ".join(f"{name}: {to_plain_text(part)}" for name, part in value.items())
    return str(value)


def audit_command(folder: Path, result: Mapping[str, Any]) -> str:
    """The command that makes this audit; capitals stand for files that an audit does not remember."""
    job, edits = result["job"], result["edits"]
    if "images" in result:
        return _external_audit_command(folder, result)
    is_external = any(edit["method"] == "foreign" for edit in edits)
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
    parts += ["--prompts", "LIST"] if suite in set(suite_names()) - set(suite_names(complete=True)) else []
    retrained = [f"ORACLE-{i + 1}" for i in range(len(job.get("oracles", [])))]
    parts += ["--oracle", *retrained] if retrained else []
    parts += ["--keep-images", job["keep"]] if "keep" in job else []
    parts += [] if has_edit_folder else ["--out", str(folder)]
    return " ".join(shlex.quote(part) for part in parts)


def _external_audit_command(folder: Path, result: Mapping[str, Any]) -> str:
    """The command that counts this answer set."""
    job, (edit,) = result["job"], result["edits"]
    (concept,) = edit["concepts"]
    parts = ["erasure", "audit", "answers", "DIR", *(["--base", "BASE"] if job["base"] else []), "--suite", suite_argument(result)]
    return " ".join(shlex.quote(part) for part in [*parts, "--concept", concept["name"], "--kind", concept["kind"], "--out", str(folder)])


def suite_argument(result: Mapping[str, Any]) -> str:
    """What --suite was: the name of a shipped suite, or of the user's file."""
    name = result["job"]["suite"]
    return str(result.get("suite_file") or (name if name in suite_names() else "SUITE.yaml"))


def report_command(folder: Path, gates_source: str) -> str:
    """The command that decides by the thresholds of another file."""
    return " ".join(shlex.quote(part) for part in ("erasure", "audit", "report", str(folder), "--suite", gates_source or "SUITE.yaml"))
