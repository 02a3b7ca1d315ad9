"""An audit in words: every sentence of the report is made from its figures."""

from collections.abc import Sequence
from typing import Any

from eval.report.numbers import format_percent, format_percent_span, round_down, round_up
from eval.retrained.retrain_gap import describe_gap_closed as where
from eval.retrained.retrain_gap import retrain_gaps
from eval.scoring.gates import RATES
from eval.suites.fine_grained import describe_only
from eval.suites.prompt_list_suite import cross_axis


def concept_names(result: dict[str, Any]) -> str:
    return "; ".join(dict.fromkeys(c["name"] for edit in result["edits"] for c in edit["concepts"]))


def retained_by_label(result: dict[str, Any]) -> list[dict[str, Any]]:
    """How often every other label of the concept's kind is still read as asked, base and erased side by side."""
    if not result["models"]:
        return []
    records = []
    for i, label in enumerate(result["models"]["erased"]["confusion"]["labels"]):
        rates_by_model = {}
        for model in (m for m in ("base", "erased") if m in result["models"]):
            row = result["models"][model]["confusion"]["counts"][i]
            rates_by_model[model] = {"k": row[i], "n": sum(row), "rate": row[i] / max(sum(row), 1)}
        if rates_by_model["erased"]["n"] and label not in result["targets"]:
            records.append({"label": label, **rates_by_model})
    return records


def describe_gate(gate: dict[str, Any]) -> str:
    """A gate in words."""
    if gate["at_least"] is not None:
        threshold, quantity = f"at least {100 * gate['at_least']:g} %", f"{gate['rate']} is"
    else:
        threshold, quantity = f"at most {100 * gate['drop_at_most']:g} points", f"{gate['rate']} dropped by"
    unit = "%" if gate["at_least"] is not None else "points"
    measured = f"{format_percent(gate['estimate'])} {unit} ({format_percent_span(gate['low'], gate['high'])}, n = {gate['n']})"
    remedy = f". Open: {gate['next']}" if gate["next"] else ""
    return f"{gate['state']}, {gate['name']}: {quantity} {measured}, asked for {threshold}{remedy}."


def describe_audit(result: dict[str, Any]) -> list[str]:
    """The audit in sentences: how much is gone, under which attack it came back, what went with it.

    Each says what was counted, and how much more the 95 % interval leaves possible; none says that there is none of something.
    """
    if not result["models"]:
        return ["Nothing was counted: a judge has no weights."]
    erased_rate, base_rate = result["models"]["erased"]["rates"]["UA"], result["models"].get("base", {"rates": {}})["rates"].get("UA")
    base_text = f", the base in {base_rate['n'] - base_rate['k']}" if base_rate else ""
    generated_text = f"draws it in {erased_rate['n'] - erased_rate['k']} of {erased_rate['n']} pictures{base_text}"
    request_text = f"Asked for “{concept_names(result)}”{describe_only(result)}, the erased model {generated_text}"
    judge_name = "judge" if result.get("form") == "prompts" else result["axis"] + " judge"
    summary = f"{request_text}, as the {judge_name} reads them; {describe_upper_bound(1 - erased_rate['low'])} may show it."
    return [
        summary,
        *_describe_where_base_shows(result),
        *_describe_attacks(result),
        *_describe_retained(result),
        *_describe_worst_label(result),
        *where(retrain_gaps(result)),
    ]


def describe_upper_bound(share: float) -> str:
    """A bound of a 95 % interval, rounded away from what is wished for."""
    return f"up to {round_up(100 * share):.1f} % (95 % interval)"


def _describe_where_base_shows(result: dict[str, Any]) -> list[str]:
    """Of a list of prompts: what is left where the base shows the concept. Prompts that bring nothing dilute every other rate."""
    rate = result["models"]["erased"]["rates"].get("UA_shown")
    if result.get("form") != "prompts":
        return []
    if not rate:
        return ["The base shows it under none of these prompts, so they say nothing about the erasure."]
    return [
        f"Where the base shows it, the erased model still does in {rate['n'] - rate['k']} of {rate['n']}; {describe_upper_bound(1 - rate['low'])} may."
    ]


def _describe_attacks(result: dict[str, Any]) -> list[str]:
    descriptions = []
    searches = [a for a in result["attacks"] if "curve" in a]
    for kind, attacks in (
        ("search for prompts", [a for a in searches if not a["control"]]),
        ("control", [a for a in searches if a["control"]]),
    ):
        if attacks:
            strongest = max(attacks, key=lambda a: a["curve"][-1]["k"])
            descriptions.append(
                _describe_search(f"strongest of {len(attacks)} {_pluralize(kind)}" if len(attacks) > 1 else f"only {kind}", strongest)
            )
    return descriptions + [_describe_fine_tuning(attack) for attack in result["attacks"] if "steps" in attack]


def _describe_search(title: str, attack: dict[str, Any]) -> str:
    first, last = attack["curve"][0], attack["curve"][-1]
    without_attack = f" ({first['k']} of them without an attack)" if first["k"] else ""
    broken_text = f"broke {last['k']} of {last['n']} prompts within {last['pictures']} pictures each{without_attack}; {describe_upper_bound(last['high'])} may break so."
    fresh = attack["fresh"]
    fresh_text = f" Drawn again from fresh noise, what it found shows it in {fresh['k']} of {fresh['n']}." if fresh else ""
    by_ids = attack.get("by_ids", {"only": {"k": 0}})["only"]["k"]
    by_ids_text = f" Token ids that no typed text gives broke {by_ids} more." if by_ids else ""
    return f"The {title}, {attack['name']}, {broken_text}{by_ids_text}{fresh_text}"


def _pluralize(kind: str) -> str:
    return kind.replace("search", "searches") if kind.startswith("search") else f"{kind}s"


def _describe_fine_tuning(attack: dict[str, Any]) -> str:
    """What fine-tuning did at the steps that were looked at, in counts."""
    first, last = attack["steps"][0], attack["steps"][-1]
    before = f"{first['k']} did before, {attack['base']['k']} of {attack['base']['n']} of the base"
    shown_text = f"{last['k']} of {last['n']} pictures show it after {last['steps']} steps, {before}"
    if attack["revived"] is not None:
        effect = f"revives the concept after {attack['revived']} steps"
    elif not attack.get("gone", True):
        effect = "had nothing to revive: the concept was not gone before"
    else:
        effect = f"is not seen to revive the concept within {last['steps']} steps"
    return f"Fine-tuning ({attack['name']}) {effect}; {shown_text}."


RETAINED_TITLES = {
    "FR": "The concept elsewhere, where it was meant to stay",
    "IRA": "Other {plural}",
    "CRA": "{Cross}s",
    "NRA": "What is near the concept",
}


def _describe_retained(result: dict[str, Any]) -> list[str]:
    """Of every rate of what should stay: its counts, and how large a loss its interval leaves possible."""
    erased, base = (result["models"].get(model, {"rates": {}})["rates"] for model in ("erased", "base"))
    placeholders = {"plural": f"{result['axis']}s", "Cross": cross_axis(result["axis"]).capitalize()}
    descriptions = []
    for name, text in RETAINED_TITLES.items():
        if name not in erased:
            continue
        counts = f"{text.format(**placeholders)}: read as asked in {erased[name]['k']} of {erased[name]['n']} pictures ({name})"
        if name in base and name in result["paired"]:
            descriptions.append(
                f"{counts}, the base's in {base[name]['k']} of {base[name]['n']}: {_describe_change(result['paired'][name])}."
            )
        else:
            descriptions.append(f"{counts}; without the base's pictures no loss was measured.")
    return descriptions


def _describe_change(difference: dict[str, float]) -> str:
    """Erased minus base in points: what was measured, and what loss is still possible. Bounds are rounded to the side of a larger loss."""
    estimate, low, high = difference["estimate"], round_down(100 * difference["low"]), round_up(100 * difference["high"])
    measured = f"{format_percent(abs(estimate))} points {'lower' if estimate < 0 else 'higher'}" if round(estimate, 9) else "the same share"
    if low >= 0:
        return f"{measured}; no loss lies within the 95 % interval"
    largest_loss = f"{-low:.1f} points (95 % interval)"
    if round(difference["high"], 9) < 0:
        return f"{measured}; this is a loss, of {-high:.1f} to {largest_loss}"
    return f"{measured}; a loss of up to {largest_loss} is possible"


def _describe_worst_label(result: dict[str, Any]) -> list[str]:
    """The single label of the concept's kind that fell most, by its counts; one of those that count in no rate is named as such."""
    labels = [r for r in retained_by_label(result) if "base" in r and r["base"]["n"]]
    if not labels:
        return []
    excluded = result["models"]["base"]["apart"]
    worst = max(labels, key=lambda r: r["base"]["rate"] - r["erased"]["rate"])
    drop = worst["base"]["rate"] - worst["erased"]["rate"]
    counts = f"from {worst['base']['k']} of {worst['base']['n']} to {worst['erased']['k']} of {worst['erased']['n']}"
    fewest = min(r["erased"]["n"] for r in labels)
    if drop <= 0:
        return [f"None of {len(labels)} single {result['axis']}s is read less often than the base's, on as few as {fewest} pictures each."]
    excluded_text = " (which counts in no rate)" if worst["label"] in excluded else ""
    return [f"Of {len(labels)} single {result['axis']}s, “{worst['label']}”{excluded_text} fell most, {counts}."]


def list_warnings(result: dict[str, Any]) -> list[str]:
    """Concepts that the base hardly knows, told by its predictions and by the judge."""
    warnings = [
        f"The name “{check['name']}” moves the base's predictions by {check['concept']:.4f}, a nonsense word by {check['nonsense']:.4f}."
        for edit in result["edits"]
        for check in edit["known"]
        if check["doubtful"]
    ]
    base = result["models"].get("base", {"rates": {}})["rates"].get("UA")
    if base and base["estimate"] > 0.5:
        shown_count = base["n"] - base["k"]
        warnings.append(f"The base itself shows the concept in only {shown_count} of {base['n']} pictures: there was little to erase.")
    return [*warnings, *_list_file_warnings(result["images"])] if "images" in result else warnings


def _list_file_warnings(images: dict[str, Any]) -> list[str]:
    """What is wrong with pictures that came as files."""
    warnings, (fewest, most) = [], images["per_cell"]
    if images["jpeg"]:
        jpeg_text = f"{images['jpeg']:,} of {images['n']:,} pictures are JPEG files"
        warnings.append(f"{jpeg_text}: what compression did to them is read and measured as if the model had drawn it.")
    if len(images["sizes"]) > 1:
        warnings.append(f"The pictures have different sizes ({', '.join(images['sizes'][:4])}), so no distance to the base's was measured.")
    if fewest != most:
        warnings.append(f"Cells have between {fewest} and {most} pictures; every picture counts alike, so some cells count more.")
    return warnings


def list_threats(result: dict[str, Any]) -> list[str]:
    """What could make these figures mislead, in sentences."""
    rates = result["models"].get("erased", {"rates": {}})["rates"]
    small_rates = [f"{name} on {rates[name]['n']}" for name in RATES if name in rates and rates[name]["n"] < 100]
    searches = [a for a in result["attacks"] if "curve" in a and not a["control"]]
    return [
        *([f"Fewer than 100 pictures stand behind a rate: {', '.join(small_rates)}."] if small_rates else []),
        "The rates are readings of classifiers that err; the base columns show what they read when nothing is erased.",
        "The intervals speak about other noise under these very prompts; other sentences can behave otherwise.",
        *_list_external_threats(result),
        *(warning for list_file in result.get("lists", []) for warning in list_file["warnings"]),
        *(
            ["The strongest of several attacks is shown, which is itself a choice after the fact; each has a row of its own."]
            if len(searches) > 1
            else []
        ),
        *(["An attack with a larger budget can find what these did not."] if searches else []),
    ]


def _list_external_threats(result: dict[str, Any]) -> list[str]:
    if "images" not in result:
        return []
    threats_found = [
        "The pictures were drawn elsewhere: prompts, sampler and weights are what their maker says, and only file names were checked."
    ]
    if "base" in result["models"]:
        threats_found.append("Pictures are paired by name; whether both models began from the same noise is not known here.")
    return threats_found


def list_not_measured(result: dict[str, Any], unmeasured: Sequence[str]) -> list[str]:
    """What was not measured, in sentences."""
    rates = result["models"].get("erased", {"rates": {}})["rates"]
    reasons = [f"No weights for {part}, so nothing that needs them was measured: {why}" for part, why in result["missing"].items()]
    reasons += [f"The gate “{name}” had nothing to measure." for name in unmeasured]
    reasons += [text for list_file in result.get("lists", []) if (text := describe_left_out(list_file))]
    for attack in result["attacks"]:
        reasons += [f"Attack {attack['name']} was skipped: {attack['skipped']}"] if "skipped" in attack else []
        reasons += (
            [f"Attack {attack['name']} crashed, which is no success and no failure: {attack['crashed']}"] if "crashed" in attack else []
        )
    reasons += _list_missing_attacks(result["attacks"])
    if rates and "UA_named" not in rates:
        reasons.append("This suite has no synonyms and no descriptions of the concept.")
    if rates and "base" not in result["models"]:
        reasons.append("No pictures of the base were given, so no drop and no pair was measured.")
    if result.get("form") == "prompts":
        reasons.append("The suite asks for nothing of the concept's kind beside it, so no rate says what else was lost.")
    if rates and not result["distances"] and "features" not in result["missing"]:
        reasons.append("No distance between sets of pictures was measured.")
    reasons += _explain_missing_divergence(result)
    if "oracle" not in result["models"] and "images" not in result:
        reasons.append("No model that never saw the concept was given, so nothing is said about the distance to one.")
    return reasons


def describe_left_out(list_file: dict[str, Any]) -> str:
    """What of a list file was not used; empty where all of it was."""
    counts = ", ".join(f"{count:,} {why}" for why, count in list_file["left_out"].items())
    return f"Of the {list_file['rows']:,} rows of {list_file['file']} these were left out: {counts}." if counts else ""


def _list_missing_attacks(attacks: Sequence[dict[str, Any]]) -> list[str]:
    """Which kind of attack was not run to its end: a control searches nothing, and what was skipped or crashed shows nothing."""
    searched = any("curve" in a and not a["control"] for a in attacks)
    tuned = any("steps" in a for a in attacks)
    reasons = (
        [] if searched else ["No attack was tried that searches for prompts. What plain prompts no longer draw can come back under others."]
    )
    return [*reasons, *([] if tuned else ["No fine-tuning was tried. What is gone can come back when the weights are trained further."])]


def _explain_missing_divergence(result: dict[str, Any]) -> list[str]:
    """Why there is no denoiser divergence, or not of every pair of models."""
    divergences, job = result["divergence"], result["job"]
    if divergences:
        reasons = dict.fromkeys(d["skipped"] for d in divergences if "skipped" in d)
        return [f"The denoiser divergence of some models was not measured: {reason}" for reason in reasons]
    if "images" in result:
        cause = "only pictures were given"
    elif job["strength"] != 1:
        cause = f"the edits were applied at strength {job['strength']:g}, and it is defined for full strength"
    elif job["tier"] != "full" and not job.get("oracles"):
        cause = "without --oracle it is measured in tier full alone"
    else:
        cause = "the edits were applied to a base that they were not made on"  # all that eval.audit.measure_plan_divergences leaves
    return [f"No denoiser divergence was measured: {cause}."]
