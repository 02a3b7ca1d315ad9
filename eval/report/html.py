"""report.html: one self-contained file from an audit folder; no script in it and no request leaves it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from erasure.storage.run import write_bytes, write_json
from eval.report import drawing
from eval.report import numbers as printed
from eval.report.junit import junit
from eval.report.pictures import Album, before_and_after, by_neighbour, by_place, drill_down, examples, pairs_of, right
from eval.report.record import WORDS, record
from eval.scoring.advice import why_unmeasured
from eval.scoring.attack_rates import REVIVED
from eval.scoring.gates import Gate, only_of, withheld
from eval.scoring.recount import rows_of
from eval.stats.intervals import Interval
from eval.suites.fine_grained import place
from eval.suites.prompt_list import crossing
from eval.suites.suite import suite_names

HERE = Path(__file__).parent
MEANING = {
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
PLURAL = {"style": "styles", "object": "objects"}
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def write(folder: Path, result: dict[str, Any], gates: Sequence[Gate], pairs: int = 8, blur: bool = False, by: str = "") -> Path:
    """Write report.json and junit.xml, and render report.html, into the folder of an audit.

    Args:
        result: of the audit.
        gates: thresholds of the verdict, as a rule the suite's.
        pairs: before/after pairs shown for the target, and as many for what should stay.
        blur: whether pictures are blurred until the reader asks for them; they always are where the kind of a concept is nsfw.
        by: the suite or file that the gates came from, if not from the audit's own.
    """
    found = record(result, gates, by)
    write_json(folder / "report.json", found)
    write_bytes(folder / "junit.xml", junit(found, result, gates))
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters.update(FILTERS, plain=plain, called=drawing.name)
    page = environment.get_template("report.html.j2").render(
        result=result,
        report=found,
        blur=blur
        or result.get("kind") == "nsfw"
        or any(concept["kind"] == "nsfw" for edit in result["edits"] for concept in edit["concepts"]),
        place=place(result),
        withheld=withheld(gates, result),
        unmeasured=[
            {**asdict(g), "why": why_unmeasured(g.rate, g.drop_at_most is not None, result)}
            for g in gates
            if g.asked(result) and g.name not in [d["name"] for d in found["gates"]]
        ],
        gate_bars=[gate_bar(decided) for decided in found["gates"]],
        scatter=scatter(result, found["gates"]),
        rates=rates(result),
        sides={side: drawing.name(side) for side in result["models"]},
        again=again(folder, result) + ("" if found["thresholds"]["own"] else f"\n{decided_again(folder, by)}"),
        **attacked(result["attacks"]),
        **seen(folder, result, pairs),
        kept_labels=by_loss(found["kept_by_label"]),
    )
    path = folder / "report.html"
    write_bytes(path, page.encode())
    return path


def rates(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every rate with what it counts and a picture of its intervals."""
    axis = result["axis"]
    own = f"pictures of the concept{place(result)}" if only_of(result) else "the erased concept's pictures"
    words = {"plural": PLURAL[axis], "cross": crossing(axis), "place": place(result), "own": own}
    found = []
    for name, text in MEANING.items():
        sides = {side: figures["rates"].get(name) for side, figures in result["models"].items()}
        if sides.get("erased"):
            bar = drawing.bar({side: interval(rate) for side, rate in sides.items() if rate})
            said = {"name": name, "words": WORDS[name], "meaning": text.format(**words), "bar": bar}
            found.append({**said, "sides": sides, "paired": result["paired"].get(name)})
    return found


def scatter(result: Mapping[str, Any], gates: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Every model by what is gone and what is kept; None where one of both was not counted."""
    points = {}
    for side, figures in result["models"].items():
        counted = figures["rates"]
        if {"UA", "IRA", "CRA"} <= counted.keys():
            points[side] = interval(counted["UA"]), mean(interval(counted["IRA"]), interval(counted["CRA"]))
    if not {"base", "erased"} <= points.keys():
        return None
    base = result["models"]["base"]["rates"]
    gone = [g["at_least"] for g in gates if g["rate"] == "UA" and g["at_least"] is not None]
    floors = [
        [g["at_least"] if g["at_least"] is not None else base[name]["estimate"] - g["drop_at_most"] for g in gates if g["rate"] == name]
        for name in ("IRA", "CRA")
    ]
    return drawing.scatter(points, max(gone, default=None), sum(map(max, floors)) / 2 if all(floors) else None)


def mean(a: Interval, b: Interval) -> Interval:
    """Of two rates on the same pictures, with the mean of their bounds: as wide as if both erred in the same direction at once."""
    return Interval(*((x + y) / 2 for x, y in zip(a, b, strict=True)))


def interval(record: Mapping[str, float]) -> Interval:
    return Interval(record["estimate"], record["low"], record["high"])


def gate_bar(decided: Mapping[str, Any]) -> Markup:
    least = decided["at_least"] is not None
    return drawing.gate(interval(decided), decided["at_least"] if least else decided["drop_at_most"], least)


def attacked(attacks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Attacks with the letters and looks of their lines, and the two charts."""
    searches = [attack for attack in attacks if "curve" in attack]
    tunings = [attack for attack in attacks if "steps" in attack]
    idle = [attack for attack in attacks if "curve" not in attack and "steps" not in attack]
    searched = [_line(i, a, a["curve"], "pictures") for i, a in enumerate(searches)]
    tuned = [_line(i, a, a["steps"], "steps", a["revived"]) for i, a in enumerate(tunings)]
    along, up = "pictures tried per prompt", "prompts broken, %"
    return {
        "searches": _lettered(searches),
        "tunings": _lettered(tunings),
        "idle_attacks": idle,
        "search_chart": drawing.curves(searched, along, up) if searched else None,
        "tuning_chart": drawing.curves(
            tuned, "steps of fine-tuning", "pictures that show the concept, %", base=interval(tunings[0]["base"]), bands=True
        )
        if tuned
        else None,
        "revived_share": REVIVED,
    }


def _line(i: int, attack: Mapping[str, Any], points: Sequence[Mapping[str, Any]], along: str, mark: float | None = None) -> drawing.Line:
    at = [(point[along], interval(point)) for point in points]
    return drawing.Line(letter=drawing.letter(i), points=at, control=attack["control"], mark=mark)


def _lettered(attacks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**a, "letter": drawing.letter(i), "key": drawing.key(i, a["control"])} for i, a in enumerate(attacks)]


def seen(folder: Path, result: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The pictures of the page, the fixed pairs first, so that a full album costs the drill-down."""
    pairs = pairs_of(rows_of(folder))
    album = Album(folder, result["job"].get("keep") != "none" and (folder / "images").is_dir())
    return {
        "pictures": album.there,
        "target_pairs": before_and_after(album, pairs, result, count, target=True),
        "kept_pairs": before_and_after(album, pairs, result, count, target=False),
        "examples": examples(album, result["attacks"], {Path(p.erased["image"]).name for p in pairs if right(p.erased, result["axis"])}),
        "drill": drill_down(album, pairs, result),
        "neighbours": by_loss(by_neighbour(pairs, result["axis"])),
        "elsewhere": by_loss(by_place(pairs, result)),
    }


def by_loss(labels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Labels with what they lost, the largest loss first; without a base, what is not read as asked."""
    found = [{**label, "lost": (label["base"]["rate"] if "base" in label else 1.0) - label["erased"]["rate"]} for label in labels]
    return sorted(found, key=lambda label: (-label["lost"], label["label"]))


def percent(share: float) -> str:
    return drawing.minus(printed.percent(share))


def points(share: float) -> str:
    """A difference with its sign."""
    return drawing.minus(printed.points(share))


def percent_span(record: Mapping[str, float]) -> str:
    return drawing.minus(printed.percent_span(record["low"], record["high"]))


def points_span(record: Mapping[str, float]) -> str:
    return drawing.minus(printed.points_span(record["low"], record["high"]))


def span(bounds: Sequence[float], digits: int) -> str:
    """Low and high of values as they are."""
    low, high = bounds
    return drawing.minus(printed.span(low, high, digits))


FILTERS = {"percent": percent, "points": points, "percent_span": percent_span, "points_span": points_span, "span": span}


def plain(value: Any) -> str:
    """A value of a judge's identity, for people."""
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    if isinstance(value, dict):
        return "; ".join(f"{name}: {plain(part)}" for name, part in value.items())
    return str(value)


def again(folder: Path, result: Mapping[str, Any]) -> str:
    """The command that makes this audit; capitals stand for files that an audit does not remember."""
    job, edits = result["job"], result["edits"]
    if "images" in result:
        return _answers(folder, result)
    strange = any(edit["method"] == "foreign" for edit in edits)
    known = len(edits) == 1 and (folder.parent / "edit.json").is_file()
    paths = [str(folder.parent)] if known else [f"EDIT-{i + 1}" if len(edits) > 1 else "EDIT" for i in range(len(edits))]
    suite = suite_of(result)
    parts = ["erasure", "audit", *paths, "--suite", suite, "--tier", job["tier"]]
    if strange:
        concepts = [concept for edit in edits for concept in edit["concepts"]]
        names = "; ".join(dict.fromkeys(concept["name"] for concept in concepts))
        parts += ["--concept", names, "--kind", concepts[0]["kind"], "--model", edits[0]["base"]["source"]]
    parts += ["--strength", f"{job['strength']:g}"] if job["strength"] != 1 else []
    parts += ["--dtype", DTYPES[job["compute"]]] if job["compute"] in DTYPES else []
    parts += ["--only", job["only"]] if "only" in job else []
    parts += ["--replay", "LIST"] if "replay" in job else []
    parts += ["--prompts", "LIST"] if suite in set(suite_names()) - set(suite_names(complete=True)) else []
    oracles = [f"ORACLE-{i + 1}" for i in range(len(job.get("oracles", [])))]
    parts += ["--oracle", *oracles] if oracles else []
    parts += ["--keep-images", job["keep"]] if "keep" in job else []
    parts += [] if known else ["--out", str(folder)]
    return " ".join(shlex.quote(part) for part in parts)


def _answers(folder: Path, result: Mapping[str, Any]) -> str:
    """The command that counts this answer set."""
    job, (edit,) = result["job"], result["edits"]
    (concept,) = edit["concepts"]
    parts = ["erasure", "audit", "answers", "DIR", *(["--base", "BASE"] if job["base"] else []), "--suite", suite_of(result)]
    return " ".join(shlex.quote(part) for part in [*parts, "--concept", concept["name"], "--kind", concept["kind"], "--out", str(folder)])


def suite_of(result: Mapping[str, Any]) -> str:
    """What --suite was: the name of a shipped suite, or of the user's file."""
    name = result["job"]["suite"]
    return str(result.get("suite_file") or (name if name in suite_names() else "SUITE.yaml"))


def decided_again(folder: Path, by: str) -> str:
    """The command that decides by the thresholds of another file."""
    return " ".join(shlex.quote(part) for part in ("erasure", "audit", "report", str(folder), "--suite", by or "SUITE.yaml"))
