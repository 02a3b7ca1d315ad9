"""Reproduce the figures of docs/results/attacks.md: pocket's erasures under rephrased prompts and under attacks.

    python scripts/reproduce_audit.py --work runs/audit --part words
    python scripts/reproduce_audit.py --work runs/audit --part attacks    # about half an hour per edit on two cores

Run folders under --work are resumed.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from fill_docs import fill_section
from reproduce_methods import DEVELOPMENT, erase_in_subprocess

from erasure.concept import parse_concepts
from erasure.edits import Edit
from erasure.erasing import erase
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.methods.esd import ESD
from erasure.recipes import configure_method
from eval.attacks._token_search import searchable_token_ids as tokens_of
from eval.auditing.plan import AuditPlan
from eval.auditing.run import audit_plan
from eval.records.attacks import AttackNotRun, FineTuningAttack, PromptSearch
from eval.records.audit_result import AuditResult
from eval.records.gates import Tier
from eval.records.models import BASE, ERASED
from eval.records.rates import CountedRate, RateName
from eval.report.html import write_report
from eval.suites.suite import load_suite

METHODS = ("esd", "uce")
EARLY_STEPS = 40  # steps of an ESD edit that was stopped too early
MANY_PROMPTS = 60  # attacked prompts of that edit: testing the attack takes more prompts than testing an edit
ROLES = {
    RateName.UA: "its name",
    RateName.UA_NAMED: "synonyms",
    RateName.UA_DESCRIBED: "descriptions",
    RateName.UA_PERTURBED: "misspellings",
}


def audit_edit_folder(model: DiffusionModel, folder: Path, tier: Tier, attacked_prompts: int = 0) -> AuditResult:
    """Audit an edit with the shipped suite and write its report; `attacked_prompts` overrides the suite's number."""
    edit, suite = Edit.load(folder), load_suite("pocket")
    suite = replace(suite, attacks=replace(suite.attacks, prompts=attacked_prompts or suite.attacks.prompts))
    (plan,) = AuditPlan.for_edits([edit], suite, tier)
    out = folder / f"audit-pocket-{tier}"
    result = audit_plan(model, [edit], plan, out)
    write_report(out, result, suite.gates)
    return result


def format_rate(rate: CountedRate) -> str:
    return f"{100 * rate.estimate:.1f} ({100 * rate.low:.0f} to {100 * rate.high:.0f}; {rate.k}/{rate.n})"


def report_rewording(model: DiffusionModel, work: Path, docs: Path) -> None:
    lines = ["| concept | method | prompts by | not shown by the erased model, % | by the base, % |", "|---|---|---|---|---|"]
    for name, kind in DEVELOPMENT.items():
        for method in METHODS:
            models = audit_edit_folder(model, erase_in_subprocess(method, name, kind, work), "standard").models
            for rate, description in ROLES.items():
                sides = " | ".join(format_rate(models[side].rates[rate]) for side in (ERASED, BASE))
                lines.append(f"| {name} | {method} | {description} | {sides} |")
    fill_section(docs / "results" / "attacks.md", "words", lines)


def erase_stopped_early(model: DiffusionModel, work: Path) -> Path:
    """Make an ESD edit that is stopped after EARLY_STEPS: most images do not show the concept, but it is easily revived."""
    folder = work / "esd" / "neon-early"
    method, concepts, _ = configure_method(ESD, parse_concepts("neon", kind="style"), model.family, {"steps": EARLY_STEPS})
    erase(model, concepts, method, out=folder)
    return folder


def report_attacks(model: DiffusionModel, work: Path, docs: Path) -> None:
    edits = {
        f"esd, {EARLY_STEPS} steps": erase_stopped_early(model, work),
        **{m: erase_in_subprocess(m, "neon", "style", work) for m in ("esd", "advunlearn")},
    }
    lines = [
        "| edit of neon | attack | broken, % of prompts | minus random prefix, points | token ids alone "
        "| success again, fresh noise, % | no attack, % |",
        "|---|---|---|---|---|---|---|",
    ]
    relearning_lines = ["| edit of neon | fine-tuning | shown at steps: rate, % | revived after |", "|---|---|---|---|"]
    for edit_count, (name, folder) in enumerate(edits.items(), 1):
        for attack in audit_edit_folder(model, folder, "full", MANY_PROMPTS if folder.name == "neon-early" else 0).attacks:
            (relearning_lines if isinstance(attack, FineTuningAttack) else lines).append(
                f"| {name} | {attack.name} | {attack_cells(attack)} |"
            )
        document = docs / "results" / "attacks.md"  # filled after every edit: each takes about half an hour
        fill_section(document, "budget", [describe_budget(model, edit_count)])
        fill_section(document, "attacks", lines)
        fill_section(document, "tuning", relearning_lines)


def attack_cells(attack: PromptSearch | FineTuningAttack | AttackNotRun) -> str:
    """Return the cells of an attack's row."""
    if isinstance(attack, PromptSearch):
        gain = (attack.over_controls or {}).get("random_prefix")
        gain_text = f"{100 * gain.estimate:+.0f} ({100 * gain.low:+.0f} to {100 * gain.high:+.0f})" if gain else "control"
        fresh_text = format_rate(attack.fresh_noise) if attack.fresh_noise else "no success"
        token_ids_text = f"{attack.token_ids.ids_only.k} more" if attack.token_ids else "no ids"
        without_attack = f"{100 * attack.curve[0].estimate:.0f}"
        return f"{format_rate(attack.curve[-1])} | {gain_text} | {token_ids_text} | {fresh_text} | {without_attack}"
    if isinstance(attack, FineTuningAttack):
        points = ", ".join(f"{point.steps}: {100 * point.estimate:.0f}" for point in attack.steps)
        not_revived = "not within these" if attack.erased_before else "was not erased"
        return f"{points} | {not_revived if attack.revived_at_step is None else attack.revived_at_step}"
    return f"{attack.skipped or attack.crashed} | | | | "


def describe_budget(model: DiffusionModel, edits: int) -> str:
    attack_config, vocabulary = load_suite("pocket").attacks, len(tokens_of(model))
    fields = {spec.name: spec.fields for spec in attack_config.use}
    prefix, steps = fields["random_prefix"]["tokens"], fields["unlearndiffatk"]["steps"]
    return (
        f"Neon erased by {edits} edits, suite `pocket`, tier full: {attack_config.prompts} prompts "
        f"({MANY_PROMPTS} where training was stopped), "
        f"{attack_config.images} images and {steps} gradient steps each. The vocabulary has {vocabulary:,} tokens, "
        f"a random prefix of {prefix} is one of {vocabulary**prefix:,}; "
        "its row shows what chance achieves."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/audit"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--part", choices=("words", "attacks"), action="append", help="run this part only; may be repeated")
    args = parser.parse_args()
    model = load_model("pocket")
    for part in args.part or ("words", "attacks"):
        {"words": report_rewording, "attacks": report_attacks}[part](model, args.work, args.docs)


if __name__ == "__main__":
    main()
