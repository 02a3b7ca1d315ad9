"""Why a gate is undecided, and what to run next, in words. Imports no torch."""

from collections.abc import Mapping
from math import ceil
from typing import Any

SCALED_BY = {"UA_perturbed": "perturbations", "NRA": "neighbors"}  # rates with one image for each of these, whatever the tier


def suggest_next_step(gate: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Say what would decide an inconclusive gate: how many images there are, how many it needs, and where to get them.

    Args:
        gate: as returned by eval.scoring.gates.Gate.decide: rate, tier, n, images_needed.
        result: of the audit, with `sample_sizes` by tier and rate.
    """
    n, needed, unit = gate["n"], gate["images_needed"], unit_of(gate["rate"])
    if needed is None:
        return f"{n:,} {unit}; the estimate is so close to the threshold that no number of {unit} can be given that would decide"
    so_far = f"{n:,} {unit}; about {needed:,} are needed if the rates stay the same"
    if "external_images" in result:
        return f"{so_far}: add images with further seeds to every cell"
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
    unit_to_add = SCALED_BY.get(gate["rate"], "images per cell")
    if result.get("suite_format") == "prompt_list":
        unit_to_add = "prompts or images per prompt"
    return f"{shortfall}: use a copy of the suite with {factor:g} times as many {unit_to_add}"


def images_by_tier(gate: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of images behind a gate's rate in every tier that the gate applies to; empty if unknown."""
    sizes_by_tier = {tier: rates for tier, rates in result.get("sample_sizes", {}).items() if gate["tier"] in ("", tier)}
    current = result.get("sample_sizes", {}).get(result.get("tier"), {})
    if gate["rate"] == "UA_shown" and current.get("UA"):  # it depends on the base: assume the same share in every tier
        return {tier: rates["UA"] * gate["n"] // current["UA"] for tier, rates in sizes_by_tier.items() if "UA" in rates}
    return {tier: rates[gate["rate"]] for tier, rates in sizes_by_tier.items() if gate["rate"] in rates}


def explain_unmeasured(rate: str, is_drop: bool, result: Mapping[str, Any]) -> str:
    """Say why a gate had nothing to measure, and what would change that.

    Args:
        rate: of the gate.
        is_drop: whether the gate is on a drop from the base.
    """
    if not result["models"]:
        return "a judge has no weights, so nothing was counted"
    if is_drop and "base" not in result["models"]:
        return "a drop needs the base's images; give them with --base"
    if rate == "UA_replayed":
        return "no list was replayed; give one with --replay"
    if rate == "UA_shown":
        return "the base shows the concept under none of the prompts"
    tiers = [tier for tier, rates in result.get("sample_sizes", {}).items() if rate in rates]
    if tiers and result.get("tier") not in tiers:
        return f"tier {result['tier']} has no prompt that it counts; --tier {' or '.join(tiers)} does"
    if rate == "UA_attacked":
        return "no search for prompts was run to its end"
    return "the suite has no prompt that it counts"


def unit_of(rate: str) -> str:
    """Return what a rate counts: prompts if under attack, images otherwise."""
    return "prompts" if rate == "UA_attacked" else "images"
