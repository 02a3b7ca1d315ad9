"""suite -> samples -> readings -> rates: how much of a concept is gone, and what else went with it."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from erasure.edits import Edit
from erasure.edits.overlap import measure_overlap
from erasure.erasing import apply_edits
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.storage.files import DamagedFile, print_message
from erasure.storage.locks import check_unlocked, lock_folder
from erasure.storage.run import Run, hash_record, remove_matching, write_json
from eval.attack_runs.runner import AttackRun, attacks_of, label_of, run_attacks
from eval.generation import Sample, generate_images, samples_of
from eval.judges.base import MissingWeights
from eval.metrics.features import make_extractor
from eval.metrics.image_distances import image_set_distances, retained_distance
from eval.retrained.divergences import measure_divergences
from eval.retrained.retrain_gap import model_distances
from eval.scoring.attack_rates import add_attacked_rate, count_attack_rates
from eval.scoring.counting import SampleRow, count_rates
from eval.scoring.judge_scores import (
    AXES,
    available_judges,
    build_judges,
    check_judges_fit,
    judge_errors,
    read_jsonl,
    samples_digest,
    score_samples,
)
from eval.scoring.published import published_figures
from eval.scoring.recount import recount
from eval.suites.cases import PLAIN_ROLES, Case, prompt_list_cases, suite_cases
from eval.suites.fine_grained import find_only_label, is_erasure_target, restrict_to_cell
from eval.suites.list_reader import ListedPrompt, PromptListOrigin
from eval.suites.prompt_list_suite import cross_axis, prompt_list_records
from eval.suites.sample_sizes import SampleSizes, count_sample_sizes
from eval.suites.suite import Axis, Suite

KeepImages = Literal["all", "none"]
SINGLE_SHARD = (0, 1)  # the only shard
IMAGE_FILES = ("images/*/*-[0-9][0-9]*.png", "images/*/drawn/*/*.png", "attacks/*/[0-9][0-9][0-9][0-9].png")
# all that an audit leaves in its folder, and all that --fresh removes there
OUTPUT_FILES = (
    *("report.html", "report.json", "junit.xml", "samples.jsonl", "timing.json"),
    *(f"readings/{part}-*.jsonl" for part in (*AXES, "clip")),
    *("attacks/judge.json", "attacks/attacks.jsonl", "attacks/*/curve.json", "attacks/*/before.safetensors", "attacks/*/known.safetensors"),
    *("attacks/*/[0-9][0-9][0-9][0-9].json", *IMAGE_FILES),
)


@dataclass(frozen=True)
class AuditPlan:
    """What to audit and how."""

    suite: Suite
    tier: str
    axis: Axis
    targets: tuple[str, ...]
    also_erased: tuple[str, ...] = ()  # labels of the other axis that the same edits erase; their cells are left out
    replay_prompts: tuple[ListedPrompt, ...] = ()  # prompts of others that are said to bring the concept back
    only: str = ""  # label of the other axis, if the targets were meant to be erased with it alone (eval.suites.fine_grained)
    replay_origin: PromptListOrigin | None = None  # the file of those prompts

    @classmethod
    def for_edits(
        cls,
        edits: Sequence[Edit],
        suite: Suite,
        tier: str,
        replay_prompts: Sequence[ListedPrompt] = (),
        only: str = "",
        replay_origin: PromptListOrigin | None = None,
    ) -> list["AuditPlan"]:
        """The audits of everything a stack of edits claims to erase, one for styles and one for objects where it erases both.

        Raises:
            UserError: edits that name no concept; see `about`.
        """
        return cls.for_concepts(
            [concept["name"] for edit in edits for concept in edit.info.concepts], suite, tier, replay_prompts, only, replay_origin
        )

    @classmethod
    def for_concepts(
        cls,
        names: Sequence[str],
        suite: Suite,
        tier: str,
        replay_prompts: Sequence[ListedPrompt] = (),
        only: str = "",
        replay_origin: PromptListOrigin | None = None,
    ) -> list["AuditPlan"]:
        """The audits of concepts by name; nothing has to be erased yet.

        Raises:
            UserError: no name, a concept the suite does not have, a label for `only` that the other axis does not have, or a suite that
                asks for none of the concepts' pictures once those of the other axis are left out; see `buildable`.
        """
        check_buildable(suite)
        if not names:
            raise UserError(
                "there is nothing to audit: the list `concepts` in edit.json is empty, so the edit does not say what it erases."
            )
        concepts = list(dict.fromkeys(suite.find_concept(name) for name in names))
        prompt_list_cases(suite, tier, 1)  # complains where there is no list
        labels = {axis: tuple(label for a, label in concepts if a == axis) for axis in AXES}
        only_label = find_only_label(suite, [axis for axis in AXES if labels[axis]], only)
        plans = [
            cls(suite, tier, axis, labels[axis], labels[AXES[1 - i]], tuple(replay_prompts), only_label, replay_origin)
            for i, axis in enumerate(AXES)
            if labels[axis]
        ]
        for plan in plans:
            if not any(case.role in PLAIN_ROLES and plan.is_target(case) for case in plan.tier_cases(tier)):
                raise UserError(
                    f"suite {suite.name} has no picture left that asks for {', '.join(plan.targets)}: every {cross_axis(plan.axis)} of it "
                    "is erased as well. Audit the edits one by one."
                )
        return plans

    def tier_cases(self, tier: str) -> list[Case]:
        """What an audit of a tier asks for."""
        cross = cross_axis(self.axis)
        selected = suite_cases(self.suite, [(self.axis, t) for t in self.targets], tier, self.replay_prompts)
        selected = restrict_to_cell(selected, self.suite, self.axis, self.targets, self.only)
        return [case for case in selected if getattr(case, cross) not in self.also_erased]

    @property
    def samples(self) -> list[Sample]:
        return samples_of(self.suite, self.tier_cases(self.tier))

    @property
    def sample_sizes(self) -> SampleSizes:
        """Pictures behind every rate, in every tier of the suite."""
        return count_sample_sizes(
            self.suite, self.axis, self.targets, self.only, {tier: self.tier_cases(tier) for tier in self.suite.tiers}
        )

    def plain_samples(self, erased: bool) -> list[Sample]:
        """The suite's own pictures that ask for what should be gone, or those that do not: of the grid, or of captions without one."""
        roles = (*PLAIN_ROLES, "benign") if self.suite.prompt_list else PLAIN_ROLES
        return [a for a in self.samples if a.case.role in roles and self.is_target(a.case) == erased]

    @property
    def retained_samples(self) -> list[Sample]:
        return [a for a in self.samples if not self.is_target(a.case)]

    @property
    def attackable_samples(self) -> list[Sample]:
        """What attacks may start from: pictures that ask for a target where it was meant to be erased, and for no target at all."""
        return [a for a in self.samples if self.is_target(a.case) or label_of(a.case, self.axis) not in self.targets]

    def is_target(self, case: Case) -> bool:
        return is_erasure_target(vars(case), self.axis, self.targets, self.only)


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """How an audit is run, as opposed to what it asks."""

    strength: float = 1.0  # of every edit
    other_base: bool = False
    retrained: tuple[Edit, ...] = ()  # each puts a model that never saw the concept in place of the base
    keep_images: KeepImages = "all"  # "none" leaves no picture behind, only what was read in it

    @property
    def apply_options(self) -> dict[str, Any]:
        return {"other_base": self.other_base, "strength": self.strength}


def audit(
    model: DiffusionModel, edits: Sequence[Edit], plan: AuditPlan, out: Path, options: AuditOptions | None = None, *, fresh: bool = False
) -> dict[str, Any]:
    """Draw, attack, judge and count; returns the result that is also in out/result.json.

    `out` ends with images/, attacks/, samples.jsonl, timing.json and result.json. Interrupted audits continue; readings of a new judge are
    added without drawing a picture.

    Args:
        edits: one, or several that are applied together, in this order.

    Raises:
        UserError: another job in `out`, an edit that does not fit the model.
        Busy: another process is writing into `out`.
    """
    options = options or AuditOptions()
    run = Run(out, job_record(model, edits, plan, options), fresh, OUTPUT_FILES)
    with lock_folder(out, "erasure audit"):
        if (
            options.keep_images == "none" and run.is_complete and (result := recount_finished(out, plan))
        ):  # its pictures are gone, its readings are not
            run.finish(result)
            return result
        return run_plan(model, edits, plan, out, options, fresh)


def recount_finished(out: Path, plan: AuditPlan) -> dict[str, Any] | None:
    """The result by the rows on disk; None where they are damaged, which is told."""
    try:
        result = recount(out, plan.suite)
    except DamagedFile as error:
        print_message(f"{error} It is made anew.")
        return None
    plan_entries = {"gates": [asdict(gate) for gate in plan.suite.gates], **({"suite_file": plan.suite.file} if plan.suite.file else {})}
    return {**{key: value for key, value in result.items() if key not in ("suite_file", "apart_by_suite")}, **plan_entries}


def run_plan(
    model: DiffusionModel, edits: Sequence[Edit], plan: AuditPlan, out: Path, options: AuditOptions, fresh: bool
) -> dict[str, Any]:
    """The work of `audit`, in a folder that is this process's own."""
    started = time.monotonic()
    run, generated_counts = generate_and_attack(model, edits, plan, out, options, fresh=fresh)
    judges, missing = available_judges(plan.suite)
    rows = score_samples(plan.samples, model_names(options), judges, out)
    attacks = load_attack_results(out, plan, rows)
    parts = {"kept": plan.plain_samples(False), "target": plan.plain_samples(True)}
    try:
        distances = image_set_distances(parts, model_names(options), plan.suite.features, out / "images")
    except MissingWeights as error:
        distances, missing["features"] = {}, str(error)
    result = {
        "tier": plan.tier,
        **add_attacked_rate(count_rates(rows, plan.suite, plan.axis, plan.targets, plan.only), attacks),
        **(
            {"gaps": model_distances(rows, plan.axis, plan.targets, plan.suite.excluded, plan.only)}
            if options.retrained and plan.axis in judges
            else {}
        ),
        "job": run.job,
        "samples_sha256": samples_digest(out),
        "lists": prompt_list_records(plan.suite.prompt_list, plan.replay_origin),
        "attacks": attacks,
        "distance": retained_distance(plan.retained_samples, out / "images"),
        "distances": distances,
        "divergence": measure_plan_divergences(model, edits, plan, options),
        "judges": {name: j.identity() for name, j in judges.items()},
        "gates": [asdict(gate) for gate in plan.suite.gates],
        **({"suite_file": plan.suite.file} if plan.suite.file else {}),
        "missing": missing,
        "errors": judge_errors(plan.suite, plan.axis, plan.targets, judges[plan.axis]) if plan.axis in judges else None,
        "edits": [edit_record(edit) for edit in edits],
        "overlap": measure_overlap(model, edits),
        "sizes": plan.sample_sizes,
    }
    write_json(out / "timing.json", {"seconds": round(time.monotonic() - started, 1), "drawn": generated_counts})
    result["published"] = published_figures(plan.suite, rows, result)
    run.finish(result)
    if options.keep_images == "none":
        remove_matching(out, IMAGE_FILES)
    return result


def generate_and_attack(
    model: DiffusionModel,
    edits: Sequence[Edit],
    plan: AuditPlan,
    out: Path,
    options: AuditOptions,
    *,
    shard: tuple[int, int] = SINGLE_SHARD,
    fresh: bool = False,
) -> tuple[Run, dict[str, int]]:
    """Everything of an audit that takes long: pictures of every model, and attacks. Several processes can share it.

    Args:
        shard: (i, n): every n-th batch of pictures and of attacked prompts, from the i-th on.
    """
    run = Run(out, job_record(model, edits, plan, options), fresh, OUTPUT_FILES)
    with apply_edits(model, edits, **options.apply_options):  # complains before anything is written
        pass
    check_judges_fit(model, plan.suite)  # before anything is drawn
    attack_run = plan_attack_run(plan)
    with lock_folder(out, "erasure audit", None if shard == SINGLE_SHARD else shard):
        if fresh:
            check_unlocked(out)  # another share that works there would lose what it draws
        run.begin()
        base_fingerprint, generated_counts = run.job["base"], {}
        stacks = edit_stacks(options, edits)
        for name, stack in stacks.items():
            apply_options = options.apply_options if name == "erased" else {"other_base": options.other_base}
            with apply_edits(model, stack, **apply_options):
                weights_digest = (
                    hash_record([base_fingerprint, apply_options.get("strength", 1.0), *(e.digest() for e in stack)])
                    if stack
                    else base_fingerprint
                )
                generated_counts[name] = generate_images(
                    model,
                    weights_digest,
                    plan.suite,
                    plan.samples,
                    out / "images" / name,
                    shard=shard,
                    use_cache=options.keep_images == "all",
                )
        if attack_run is not None:
            run_attacks(model, edits, attack_run, out / "attacks", shard=shard, **options.apply_options)
    return run, generated_counts


def edit_stacks(options: AuditOptions, edits: Sequence[Edit]) -> dict[str, Sequence[Edit]]:
    """The models of an audit and the edits that make them of the base."""
    retrained = {f"oracle-{i}" if i > 1 else "oracle": [edit] for i, edit in enumerate(options.retrained, 1)}
    return {"base": [], "erased": edits, **retrained}


def model_names(options: AuditOptions) -> tuple[str, ...]:
    return tuple(edit_stacks(options, ()))


def measure_plan_divergences(model: DiffusionModel, edits: Sequence[Edit], plan: AuditPlan, options: AuditOptions) -> list[dict[str, Any]]:
    """Denoiser divergences, in tier full and where there is an oracle; of edits in full strength on their own base."""
    if options.apply_options != AuditOptions().apply_options or not (options.retrained or plan.tier == "full"):
        return []
    return measure_divergences(model, edit_stacks(options, edits), plan.plain_samples(True), plan.plain_samples(False))


def plan_attack_run(plan: AuditPlan) -> AttackRun | None:
    """The attacks of an audit; None where its tier has none, or the judge that would decide has no weights."""
    judges, _ = available_judges(plan.suite)
    if plan.tier not in plan.suite.attacks.tiers or plan.axis not in judges:
        return None
    return AttackRun.from_suite(plan.suite, plan.axis, plan.targets, plan.attackable_samples, judges[plan.axis])


def load_attack_results(out: Path, plan: AuditPlan, rows: Sequence[SampleRow]) -> list[dict[str, Any]]:
    """What the attacks found, counted from the rows on disk."""
    attack_run = plan_attack_run(plan)
    if attack_run is None:
        return []
    attack_facts = {
        name: {"paper": a.paper, "threat": a.threat, "control": a.control, "fields": asdict(a)}  # type: ignore[call-overload]  # dataclasses
        for name, a in attacks_of(plan.suite.attacks).items()
    }
    attacked_images = {a.file_name for a in attack_run.attempts}
    shown_unattacked: dict[str, dict[str, bool]] = {name: {} for name in attacked_images}
    for row in rows:
        name = Path(row["image"]).name
        if name in attacked_images:
            shown_unattacked[name][row["model"]] = row["read"][plan.axis]["label"] == row[plan.axis]
    return count_attack_rates(read_jsonl(out / "attacks" / "attacks.jsonl"), attack_facts, shown_unattacked)


def check_buildable(suite: Suite) -> None:
    """Complain, before anything is drawn, about fields that a suite's judges, attacks or extractor do not have; no weights are loaded."""
    build_judges(suite)
    attacks_of(suite.attacks)
    if suite.features:
        make_extractor(suite.features)


def job_record(model: DiffusionModel, edits: Sequence[Edit], plan: AuditPlan, options: AuditOptions) -> dict[str, Any]:
    """What identifies an audit."""
    return {
        "task": "audit",
        "base": model.fingerprint(),
        "edits": [edit.digest() for edit in edits],
        "suite": plan.suite.name,
        "suite_version": plan.suite.version,
        "suite_asks": suite_digest(plan.suite),
        "axis": plan.axis,
        "tier": plan.tier,
        "strength": options.strength,
        "compute": str(model.compute_dtype).removeprefix("torch."),
        **({"replay": hash_record([prompt.to_record() for prompt in plan.replay_prompts])} if plan.replay_prompts else {}),
        **({"only": plan.only} if plan.only else {}),
        **({"oracles": [retrained.digest() for retrained in options.retrained]} if options.retrained else {}),
        **({"keep": options.keep_images} if options.keep_images != "all" else {}),
    }


def suite_digest(suite: Suite) -> str:
    """Digest of what decides a suite's pictures. A key that suites did not always have counts only where it says something."""
    ignored = {"gates", "apart", "judges", "published", "file", *(key for key in ("seeds", "listed") if not getattr(suite, key))}
    fields = {key: value for key, value in asdict(suite).items() if key not in ignored}
    if "listed" in fields:  # the prompts count, and not the name of their file
        fields["listed"] = {key: value for key, value in fields["listed"].items() if key != "origin"}
    return hash_record(fields)


def edit_record(edit: Edit) -> dict[str, Any]:
    info = edit.info
    return {
        "method": info.method,
        "fields": info.fields,
        "concepts": info.concepts,
        "seed": info.seed,
        "cost": info.cost,
        "base": info.base,
        "versions": info.versions,
        "known": info.concept_checks,
        "notes": info.notes,
        "product": info.product,
    }
