"""The verdict and its gates in sentences."""

from itertools import pairwise

from eval.records.audit_result import AuditResult
from eval.records.gates import TIERS, GateDecision, Verdict
from eval.records.rates import RateName
from eval.report.numbers import format_percent, format_percent_span


def summarize_verdict(verdict: Verdict, tier: str) -> str:
    """Say how many of an audit's gates passed, failed or are undecided, and which.

    Args:
        verdict: of the audit.
        tier: of its images; a larger one, if there is one, is advised for gates that have too few.
    """
    failed = [gate.name for gate in verdict.gates if gate.state == "FAIL"]
    too_few = [gate.name for gate in verdict.gates if gate.state == "INCONCLUSIVE"]
    count = len(verdict.gates) + len(verdict.unmeasured)
    if not count:
        return "No gate applies to this audit, so nothing can pass."
    sentences = [f"{len(failed)} of {count} gates failed: {', '.join(failed)}."] if failed else []
    if too_few:
        sentences.append(f"{len(too_few)} of {count} gates cannot be decided with so few images: {', '.join(too_few)}.")
    if verdict.unmeasured:
        sentences.append(f"{len(verdict.unmeasured)} of {count} gates had nothing to measure: {', '.join(verdict.unmeasured)}.")
    if not sentences:
        gates = "The only gate" if count == 1 else f"All {count} gates"
        sentences.append(f"{gates} passed" + (", but the audit is incomplete." if verdict.withheld else "."))
    elif not failed:
        sentences.append("None failed.")
    larger_tiers = dict[str, str](pairwise(TIERS))
    if too_few and tier in larger_tiers:
        sentences.append(f"Tier {larger_tiers[tier]} has more images.")
    return " ".join(sentences)


STILL_SHOWN = "the concept is still shown. Train longer or choose another method, and audit again."
BROUGHT_BACK = "prompts bring the concept back. Choose a method that trains against attacks; do not rely on this edit where people type."
TOO_MUCH_LOST = "too much else was lost. Lower the strength or give the method more to retain, and audit again."


def advise(verdict: Verdict, result: AuditResult) -> str:
    """Say what to do next: about the first gate that failed, else about what is undecided or missing, else about what was not tried."""
    failed = [gate for gate in verdict.gates if gate.state == "FAIL"]
    undecided = [gate for gate in verdict.gates if gate.state == "INCONCLUSIVE"]
    larger_tiers = dict[str, str](pairwise(TIERS))
    if failed:
        if failed[0].rate is RateName.UA_ATTACKED:
            return BROUGHT_BACK
        return TOO_MUCH_LOST if failed[0].at_least is None else STILL_SHOWN
    if undecided:
        if result.tier in larger_tiers:
            return f"run the same command with --tier {larger_tiers[result.tier]}, which has more images."
        return f"more images are needed for {undecided[0].name}: {undecided[0].next_step}."
    if not verdict.gates and not verdict.unmeasured:
        return "choose a suite or a tier that has gates, so that something can pass or fail."
    if verdict.withheld:
        return f"complete the audit: {verdict.withheld[0]}"
    if verdict.unmeasured:
        return f"measure what is missing: {', '.join(verdict.unmeasured)}."
    if not result.searches and not result.external_images and any(gate.rate is RateName.UA_ATTACKED for gate in result.gates or ()):
        return "attack it before you rely on it: run the same command with --tier full."
    tried = "" if result.searches else " No attack was tried, so say so where the edit is used."
    return f"look at the images, and sign if you agree with what the judges read.{tried}"


def describe_gate(gate: GateDecision) -> str:
    """Describe a gate: its state, what was measured, its threshold, and what would decide it."""
    span = format_percent_span(gate.low, gate.high)
    if gate.at_least is not None:
        threshold, measured = f"at least {100 * gate.at_least:g}%", f"{gate.rate} is {format_percent(gate.estimate)}%"
    else:
        threshold, span = f"a drop of at most {100 * (gate.drop_at_most or 0):g} points", f"a drop of {span}"
        verb = "rose" if round(gate.estimate, 9) < 0 else "dropped"
        measured = f"{gate.rate} {verb} by {format_percent(abs(gate.estimate))} points"
    advice = f". What would decide it: {gate.next_step}" if gate.next_step else ""
    return f"{gate.state}, {gate.name}: {measured} ({span}, n = {gate.n}), threshold {threshold}{advice}."
