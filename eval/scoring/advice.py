"""Why a gate is open, and what to run next. Words from figures alone; no torch here."""

from collections.abc import Mapping
from math import ceil
from typing import Any

SCALED_BY = {"UA_mutated": "mutations", "NRA": "neighbours"}  # of rates that have one picture for each of these, whatever the tier


def suggest_next_step(gate: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """What would decide an open gate: how many pictures there are, how many are needed, and where they come from.

    Args:
        gate: a decided one (eval.scoring.gates.Gate.decide), with its rate, n, and `needed`.
        result: of the audit, with `sizes` by tier and rate.
    """
    n, needed, unit = gate["n"], gate["needed"], unit_of(gate["rate"])
    if needed is None:
        return f"{n:,} {unit}; the estimate lies so near the threshold that no number of {unit} can be named that would decide"
    so_far = f"{n:,} {unit}; about {needed:,} are needed if the shares stay as they are"
    if "images" in result:
        return f"{so_far}: add pictures with further seeds to every cell"
    if gate["rate"] == "UA_replayed":
        return f"{so_far}: replay a longer list"
    available = images_by_tier(gate, result)
    if sufficient := {tier: size for tier, size in available.items() if size >= needed}:
        tier = min(sufficient, key=lambda tier: sufficient[tier])
        return f"{so_far}: --tier {tier} has {sufficient[tier]:,}"
    if not available:
        return so_far
    largest = max(available, key=lambda tier: available[tier])
    shortfall = f"{so_far}, and no tier of suite {result['job']['suite']} has that many ({largest}: {available[largest]:,})"
    if gate["rate"] == "UA_attacked":
        return f"{shortfall}: use a copy of the suite with attacks.prompts: {needed}"
    factor = ceil(10 * needed / available[largest]) / 10
    unit_to_add = "prompts or pictures a prompt" if result.get("form") == "prompts" else SCALED_BY.get(gate["rate"], "pictures a cell")
    return f"{shortfall}: use a copy of the suite with {factor:g} times as many {unit_to_add}"


def images_by_tier(gate: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, int]:
    """How many pictures stand behind a gate's rate in the tiers that ask it; empty where nobody counted."""
    sizes_by_tier = {tier: rates for tier, rates in result.get("sizes", {}).items() if gate["tier"] in ("", tier)}
    current = result.get("sizes", {}).get(result.get("tier"), {})
    if gate["rate"] == "UA_shown" and current.get("UA"):  # which depends on the base: taken as the same share of all
        return {tier: rates["UA"] * gate["n"] // current["UA"] for tier, rates in sizes_by_tier.items() if "UA" in rates}
    return {tier: rates[gate["rate"]] for tier, rates in sizes_by_tier.items() if gate["rate"] in rates}


def explain_unmeasured(rate: str, is_drop: bool, result: Mapping[str, Any]) -> str:
    """Why a gate had nothing to measure, and what would change that.

    Args:
        drop: whether the gate is on a drop from the base.
    """
    if not result["models"]:
        return "a judge has no weights, so nothing was counted"
    if is_drop and "base" not in result["models"]:
        return "a drop needs the base's pictures; give them with --base"
    if rate == "UA_replayed":
        return "no list was replayed; give one with --replay"
    if rate == "UA_shown":
        return "the base shows the concept under none of the prompts"
    tiers = [tier for tier, rates in result.get("sizes", {}).items() if rate in rates]
    if tiers and result.get("tier") not in tiers:
        return f"tier {result['tier']} asks for nothing that it counts; --tier {' or '.join(tiers)} does"
    if rate == "UA_attacked":
        return "no search for prompts was run to its end"
    return "the suite asks for nothing that it counts"


def unit_of(rate: str) -> str:
    """What a rate counts: what attacks broke are prompts, all else are pictures."""
    return "prompts" if rate == "UA_attacked" else "pictures"
