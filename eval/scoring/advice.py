"""Why a gate is undecided, and what to run next, in words. Imports no torch."""

from math import ceil

from eval.records.audit_result import AuditResult
from eval.records.gates import GateDecision
from eval.records.rates import RateName

# rates with one image for each of these, whatever the tier
SCALED_BY = {RateName.UA_PERTURBED: "perturbations", RateName.NRA: "neighbors"}


def suggest_next_step(gate: GateDecision, result: AuditResult) -> str:
    """Say what would decide an inconclusive gate: how many images there are, how many it needs, and where to get them."""
    n, needed, unit = gate.n, gate.images_needed, unit_of(gate.rate)
    if needed is None:
        return f"{n:,} {unit} so far; the estimate lies so close to the threshold that no number can be named"
    so_far = f"{n:,} {unit}; about {needed:,} are needed if the rates stay the same"
    if result.external_images:
        return f"{so_far}: add images with further seeds to every cell"
    if gate.rate is RateName.UA_REPLAYED:
        return f"{so_far}: replay a longer list"
    available = images_by_tier(gate, result)
    if sufficient := {tier: size for tier, size in available.items() if size >= needed}:
        tier = min(sufficient, key=lambda tier: sufficient[tier])
        return f"{so_far}: --tier {tier} has {sufficient[tier]:,}"
    if not available:
        return so_far
    largest = max(available, key=lambda tier: available[tier])
    shortfall = f"{so_far}, and no tier of suite {result.job.suite} has that many ({largest}: {available[largest]:,})"
    if gate.rate is RateName.UA_ATTACKED:
        return f"{shortfall}: use a copy of the suite with attacks.prompts: {needed}"
    factor = ceil(10 * needed / available[largest]) / 10
    unit_to_add = "prompts or images per prompt" if result.is_prompt_list else SCALED_BY.get(gate.rate, "images per cell")
    return f"{shortfall}: use a copy of the suite with {factor:g} times as many {unit_to_add}"


def images_by_tier(gate: GateDecision, result: AuditResult) -> dict[str, int]:
    """Return the number of images behind a gate's rate in every tier that the gate applies to; empty if unknown."""
    sizes_by_tier = {tier: sizes for tier, sizes in result.sample_sizes.items() if gate.tier in ("", tier)}
    current_ua = result.sample_sizes.get(result.tier, {}).get(RateName.UA)
    if gate.rate is RateName.UA_SHOWN and current_ua:  # it depends on the base: assume the same share in every tier
        return {tier: sizes[RateName.UA] * gate.n // current_ua for tier, sizes in sizes_by_tier.items() if RateName.UA in sizes}
    return {tier: sizes[gate.rate] for tier, sizes in sizes_by_tier.items() if gate.rate in sizes}


def explain_unmeasured(rate: RateName, is_drop: bool, result: AuditResult) -> str:
    """Say why a gate had nothing to measure, and what would change that.

    Args:
        rate: of the gate.
        is_drop: whether the gate is on a drop from the base.
    """
    if not result.models:
        return "a judge has no weights, so nothing was counted"
    if is_drop and not result.base:
        return "a drop needs the base's images; give them with --base"
    if rate is RateName.UA_REPLAYED:
        return "no list was replayed; give one with --replay"
    if rate is RateName.UA_SHOWN:
        return "the base shows the concept under none of the prompts"
    tiers = [tier for tier, sizes in result.sample_sizes.items() if rate in sizes]
    if tiers and result.tier not in tiers:
        return f"tier {result.tier} has no prompt that it counts; --tier {' or '.join(tiers)} does"
    if rate is RateName.UA_ATTACKED:
        return "no search for prompts was run to its end"
    return "the suite has no prompt that it counts"


def unit_of(rate: RateName) -> str:
    """Return what a rate counts: prompts if under attack, images otherwise."""
    return "prompts" if rate is RateName.UA_ATTACKED else "images"
