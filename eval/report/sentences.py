"""An audit in words: every sentence of the report is made from its figures."""

from collections.abc import Sequence
from typing import Any

from eval.report.numbers import down, percent, percent_span, up
from eval.retrained.gap import placed
from eval.retrained.gap import said as where
from eval.scoring.gates import RATES
from eval.suites.fine_grained import place
from eval.suites.prompt_list import crossing


def concept(result: dict[str, Any]) -> str:
    return "; ".join(dict.fromkeys(c["name"] for edit in result["edits"] for c in edit["concepts"]))


def kept_by_label(result: dict[str, Any]) -> list[dict[str, Any]]:
    """How often every other label of the concept's kind is still read as asked, base and erased side by side."""
    if not result["models"]:
        return []
    found = []
    for i, label in enumerate(result["models"]["erased"]["confusion"]["labels"]):
        sides = {}
        for model in (m for m in ("base", "erased") if m in result["models"]):
            row = result["models"][model]["confusion"]["counts"][i]
            sides[model] = {"k": row[i], "n": sum(row), "rate": row[i] / max(sum(row), 1)}
        if sides["erased"]["n"] and label not in result["targets"]:
            found.append({"label": label, **sides})
    return found


def sentence(gate: dict[str, Any]) -> str:
    """A gate in words."""
    if gate["at_least"] is not None:
        asked, what = f"at least {100 * gate['at_least']:g} %", f"{gate['rate']} is"
    else:
        asked, what = f"at most {100 * gate['drop_at_most']:g} points", f"{gate['rate']} dropped by"
    unit = "%" if gate["at_least"] is not None else "points"
    measured = f"{percent(gate['estimate'])} {unit} ({percent_span(gate['low'], gate['high'])}, n = {gate['n']})"
    more = f". Open: {gate['next']}" if gate["next"] else ""
    return f"{gate['state']}, {gate['name']}: {what} {measured}, asked for {asked}{more}."


def conclusions(result: dict[str, Any]) -> list[str]:
    """The audit in sentences: how much is gone, under which attack it came back, what went with it.

    Each says what was counted, and how much more the 95 % interval leaves possible; none says that there is none of something.
    """
    if not result["models"]:
        return ["Nothing was counted: a judge has no weights."]
    gone, base = result["models"]["erased"]["rates"]["UA"], result["models"].get("base", {"rates": {}})["rates"].get("UA")
    was = f", the base in {base['n'] - base['k']}" if base else ""
    drawn = f"draws it in {gone['n'] - gone['k']} of {gone['n']} pictures{was}"
    asked = f"Asked for “{concept(result)}”{place(result)}, the erased model {drawn}"
    judge = "judge" if result.get("form") == "prompts" else result["axis"] + " judge"
    said = f"{asked}, as the {judge} reads them; {up_to(1 - gone['low'])} may show it."
    return [said, *_where_shown(result), *_under_attack(result), *_stays(result), *_worst_label(result), *where(placed(result))]


def up_to(share: float) -> str:
    """A bound of a 95 % interval, rounded away from what is wished for."""
    return f"up to {up(100 * share):.1f} % (95 % interval)"


def _where_shown(result: dict[str, Any]) -> list[str]:
    """Of a list of prompts: what is left where the base shows the concept. Prompts that bring nothing dilute every other rate."""
    some = result["models"]["erased"]["rates"].get("UA_shown")
    if result.get("form") != "prompts":
        return []
    if not some:
        return ["The base shows it under none of these prompts, so they say nothing about the erasure."]
    return [
        f"Where the base shows it, the erased model still does in {some['n'] - some['k']} of {some['n']}; {up_to(1 - some['low'])} may."
    ]


def _under_attack(result: dict[str, Any]) -> list[str]:
    said = []
    searches = [a for a in result["attacks"] if "curve" in a]
    for kind, chosen in (
        ("search for prompts", [a for a in searches if not a["control"]]),
        ("control", [a for a in searches if a["control"]]),
    ):
        if chosen:
            hard = max(chosen, key=lambda a: a["curve"][-1]["k"])
            said.append(_broke(f"strongest of {len(chosen)} {_plural(kind)}" if len(chosen) > 1 else f"only {kind}", hard))
    return said + [_revived(attack) for attack in result["attacks"] if "steps" in attack]


def _broke(which: str, attack: dict[str, Any]) -> str:
    first, last = attack["curve"][0], attack["curve"][-1]
    alone = f" ({first['k']} of them without an attack)" if first["k"] else ""
    broke = f"broke {last['k']} of {last['n']} prompts within {last['pictures']} pictures each{alone}; {up_to(last['high'])} may break so."
    fresh = attack["fresh"]
    again = f" Drawn again from fresh noise, what it found shows it in {fresh['k']} of {fresh['n']}." if fresh else ""
    ids = attack.get("by_ids", {"only": {"k": 0}})["only"]["k"]
    typed = f" Token ids that no typed text gives broke {ids} more." if ids else ""
    return f"The {which}, {attack['name']}, {broke}{typed}{again}"


def _plural(kind: str) -> str:
    return kind.replace("search", "searches") if kind.startswith("search") else f"{kind}s"


def _revived(attack: dict[str, Any]) -> str:
    """What fine-tuning did at the steps that were looked at, in counts."""
    first, last = attack["steps"][0], attack["steps"][-1]
    before = f"{first['k']} did before, {attack['base']['k']} of {attack['base']['n']} of the base"
    shown = f"{last['k']} of {last['n']} pictures show it after {last['steps']} steps, {before}"
    if attack["revived"] is not None:
        does = f"revives the concept after {attack['revived']} steps"
    elif not attack.get("gone", True):
        does = "had nothing to revive: the concept was not gone before"
    else:
        does = f"is not seen to revive the concept within {last['steps']} steps"
    return f"Fine-tuning ({attack['name']}) {does}; {shown}."


STAYING = {
    "FR": "The concept elsewhere, where it was meant to stay",
    "IRA": "Other {plural}",
    "CRA": "{Cross}s",
    "NRA": "What is near the concept",
}


def _stays(result: dict[str, Any]) -> list[str]:
    """Of every rate of what should stay: its counts, and how large a loss its interval leaves possible."""
    erased, base = (result["models"].get(model, {"rates": {}})["rates"] for model in ("erased", "base"))
    words = {"plural": f"{result['axis']}s", "Cross": crossing(result["axis"]).capitalize()}
    found = []
    for name, text in STAYING.items():
        if name not in erased:
            continue
        counts = f"{text.format(**words)}: read as asked in {erased[name]['k']} of {erased[name]['n']} pictures ({name})"
        if name in base and name in result["paired"]:
            found.append(f"{counts}, the base's in {base[name]['k']} of {base[name]['n']}: {_change(result['paired'][name])}.")
        else:
            found.append(f"{counts}; without the base's pictures no loss was measured.")
    return found


def _change(difference: dict[str, float]) -> str:
    """Erased minus base in points: what was measured, and what loss is still possible. Bounds are rounded to the side of a larger loss."""
    estimate, low, high = difference["estimate"], down(100 * difference["low"]), up(100 * difference["high"])
    measured = f"{percent(abs(estimate))} points {'lower' if estimate < 0 else 'higher'}" if round(estimate, 9) else "the same share"
    if low >= 0:
        return f"{measured}; no loss lies within the 95 % interval"
    most = f"{-low:.1f} points (95 % interval)"
    if round(difference["high"], 9) < 0:
        return f"{measured}; this is a loss, of {-high:.1f} to {most}"
    return f"{measured}; a loss of up to {most} is possible"


def _worst_label(result: dict[str, Any]) -> list[str]:
    """The single label of the concept's kind that fell most, by its counts; one of those that count in no rate is named as such."""
    labels = [r for r in kept_by_label(result) if "base" in r and r["base"]["n"]]
    if not labels:
        return []
    apart = result["models"]["base"]["apart"]
    worst = max(labels, key=lambda r: r["base"]["rate"] - r["erased"]["rate"])
    fell = worst["base"]["rate"] - worst["erased"]["rate"]
    counts = f"from {worst['base']['k']} of {worst['base']['n']} to {worst['erased']['k']} of {worst['erased']['n']}"
    fewest = min(r["erased"]["n"] for r in labels)
    if fell <= 0:
        return [f"None of {len(labels)} single {result['axis']}s is read less often than the base's, on as few as {fewest} pictures each."]
    aside = " (which counts in no rate)" if worst["label"] in apart else ""
    return [f"Of {len(labels)} single {result['axis']}s, “{worst['label']}”{aside} fell most, {counts}."]


def doubts(result: dict[str, Any]) -> list[str]:
    """Concepts that the base hardly knows, told by its predictions and by the judge."""
    found = [
        f"The name “{k['name']}” moves the base's predictions by {k['concept']:.4f}, a nonsense word by {k['nonsense']:.4f}."
        for edit in result["edits"]
        for k in edit["known"]
        if k["doubtful"]
    ]
    base = result["models"].get("base", {"rates": {}})["rates"].get("UA")
    if base and base["estimate"] > 0.5:
        shown = base["n"] - base["k"]
        found.append(f"The base itself shows the concept in only {shown} of {base['n']} pictures: there was little to erase.")
    return [*found, *_about_files(result["images"])] if "images" in result else found


def _about_files(images: dict[str, Any]) -> list[str]:
    """What is wrong with pictures that came as files."""
    found, (fewest, most) = [], images["per_cell"]
    if images["jpeg"]:
        what = f"{images['jpeg']:,} of {images['n']:,} pictures are JPEG files"
        found.append(f"{what}: what compression did to them is read and measured as if the model had drawn it.")
    if len(images["sizes"]) > 1:
        found.append(f"The pictures have different sizes ({', '.join(images['sizes'][:4])}), so no distance to the base's was measured.")
    if fewest != most:
        found.append(f"Cells have between {fewest} and {most} pictures; every picture counts alike, so some cells count more.")
    return found


def threats(result: dict[str, Any]) -> list[str]:
    """What could make these figures mislead, in sentences."""
    rates = result["models"].get("erased", {"rates": {}})["rates"]
    small = [f"{name} on {rates[name]['n']}" for name in RATES if name in rates and rates[name]["n"] < 100]
    searched = [a for a in result["attacks"] if "curve" in a and not a["control"]]
    return [
        *([f"Fewer than 100 pictures stand behind a rate: {', '.join(small)}."] if small else []),
        "The rates are readings of classifiers that err; the base columns show what they read when nothing is erased.",
        "The intervals speak about other noise under these very prompts; other sentences can behave otherwise.",
        *_of_answers(result),
        *(warning for found in result.get("lists", []) for warning in found["warnings"]),
        *(
            ["The strongest of several attacks is shown, which is itself a choice after the fact; each has a row of its own."]
            if len(searched) > 1
            else []
        ),
        *(["An attack with a larger budget can find what these did not."] if searched else []),
    ]


def _of_answers(result: dict[str, Any]) -> list[str]:
    if "images" not in result:
        return []
    said = ["The pictures were drawn elsewhere: prompts, sampler and weights are what their maker says, and only file names were checked."]
    if "base" in result["models"]:
        said.append("Pictures are paired by name; whether both models began from the same noise is not known here.")
    return said


def skipped(result: dict[str, Any], unmeasured: Sequence[str]) -> list[str]:
    """What was not measured, in sentences."""
    rates = result["models"].get("erased", {"rates": {}})["rates"]
    found = [f"No weights for {part}, so nothing that needs them was measured: {why}" for part, why in result["missing"].items()]
    found += [f"The gate “{name}” had nothing to measure." for name in unmeasured]
    found += [said for listed in result.get("lists", []) if (said := left_out(listed))]
    for attack in result["attacks"]:
        found += [f"Attack {attack['name']} was skipped: {attack['skipped']}"] if "skipped" in attack else []
        found += (
            [f"Attack {attack['name']} crashed, which is no success and no failure: {attack['crashed']}"] if "crashed" in attack else []
        )
    found += _not_attacked(result["attacks"])
    if rates and "UA_named" not in rates:
        found.append("This suite has no synonyms and no descriptions of the concept.")
    if rates and "base" not in result["models"]:
        found.append("No pictures of the base were given, so no drop and no pair was measured.")
    if result.get("form") == "prompts":
        found.append("The suite asks for nothing of the concept's kind beside it, so no rate says what else was lost.")
    if rates and not result["distances"] and "features" not in result["missing"]:
        found.append("No distance between sets of pictures was measured.")
    found += _not_compared(result)
    if "oracle" not in result["models"] and "images" not in result:
        found.append("No model that never saw the concept was given, so nothing is said about the distance to one.")
    return found


def left_out(listed: dict[str, Any]) -> str:
    """What of a list file was not used; empty where all of it was."""
    gone = ", ".join(f"{count:,} {why}" for why, count in listed["left_out"].items())
    return f"Of the {listed['rows']:,} rows of {listed['file']} these were left out: {gone}." if gone else ""


def _not_attacked(attacks: Sequence[dict[str, Any]]) -> list[str]:
    """Which kind of attack was not run to its end: a control searches nothing, and what was skipped or crashed shows nothing."""
    searched = any("curve" in a and not a["control"] for a in attacks)
    tuned = any("steps" in a for a in attacks)
    found = (
        [] if searched else ["No attack was tried that searches for prompts. What plain prompts no longer draw can come back under others."]
    )
    return [*found, *([] if tuned else ["No fine-tuning was tried. What is gone can come back when the weights are trained further."])]


def _not_compared(result: dict[str, Any]) -> list[str]:
    """Why there is no denoiser divergence, or not of every pair of models."""
    found, job = result["divergence"], result["job"]
    if found:
        reasons = dict.fromkeys(d["skipped"] for d in found if "skipped" in d)
        return [f"The denoiser divergence of some models was not measured: {reason}" for reason in reasons]
    if "images" in result:
        why = "only pictures were given"
    elif job["strength"] != 1:
        why = f"the edits were applied at strength {job['strength']:g}, and it is defined for full strength"
    elif job["tier"] != "full" and not job.get("oracles"):
        why = "without --oracle it is measured in tier full alone"
    else:
        why = "the edits were applied to a base that they were not made on"  # all that eval.audit.divergent leaves
    return [f"No denoiser divergence was measured: {why}."]
