"""Suite -> samples -> judge scores -> rates: how much of a concept was erased, and what else was lost with it."""

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
from eval.attack_runs.attack_run import AttackRun, label_of
from eval.attack_runs.runner import attacks_of, run_attacks
from eval.generation import Sample, generate_images, samples_of
from eval.judges.base import MissingWeights
from eval.metrics.features import make_extractor
from eval.metrics.image_distances import image_set_distances, retained_distance
from eval.retrained.divergences import measure_divergences
from eval.retrained.retrain_gap import model_distances
from eval.scoring.attack_rates import add_attacked_rate, count_attack_rates
from eval.scoring.counting import AXES, SampleRow, count_rates
from eval.scoring.judge_scores import (
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
SINGLE_SHARD = (0, 1)  # shard 0 of 1: the whole audit
IMAGE_FILES = ("images/*/*-[0-9][0-9]*.png", "images/*/uncached/*/*.png", "attacks/*/[0-9][0-9][0-9][0-9].png")
# everything an audit writes into its folder; --fresh removes exactly these files
OUTPUT_FILES = (
    *("report.html", "report.json", "junit.xml", "samples.jsonl", "timing.json"),
    *(f"scores/{part}-*.jsonl" for part in (*AXES, "clip")),
    *("attacks/judge.json", "attacks/attacks.jsonl", "attacks/*/curve.json", "attacks/*/[0-9][0-9][0-9][0-9].json"),
    *("attacks/*/prepared.safetensors", "attacks/*/fitted.safetensors", *IMAGE_FILES),
)


@dataclass(frozen=True)
class AuditPlan:
    """What an audit measures: a suite, a tier, and the labels of one axis that should be erased."""

    suite: Suite
    tier: str
    axis: Axis
    targets: tuple[str, ...]
    also_erased: tuple[str, ...] = ()  # labels of the other axis that the same edits erase; their cells are skipped
    replay_prompts: tuple[ListedPrompt, ...] = ()  # prompts from elsewhere that are claimed to bring the concept back
    only: str = ""  # label of the other axis if the targets should be erased on it alone (eval.suites.fine_grained)
    replay_origin: PromptListOrigin | None = None  # the file that those prompts come from

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
        """Return the plans for everything that a stack of edits claims to erase: one for styles, one for objects, or both.

        Raises:
            UserError: see `for_concepts`.
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
        """Return the plans for concepts by name; no edit has to exist yet.

        Raises:
            UserError: there is no name; the suite lacks a concept, or the other axis lacks the label `only`; or no cell of the concepts is
                left once the erased labels of the other axis are skipped. See also `check_buildable`.
        """
        check_buildable(suite)
        if not names:
            raise UserError(
                "there is nothing to audit: the list `concepts` in edit.json is empty, so the edit does not say what it erases."
            )
        concepts = list(dict.fromkeys(suite.find_concept(name) for name in names))
        prompt_list_cases(suite, tier, 1)  # raises if the suite needs a list and has none
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
                    f"suite {suite.name} has no image left that asks for {', '.join(plan.targets)}: every {cross_axis(plan.axis)} of it "
                    "is erased as well. Audit the edits one by one."
                )
        return plans

    def tier_cases(self, tier: str) -> list[Case]:
        """Return the cases of a tier, without the cells of labels that are also erased."""
        cross = cross_axis(self.axis)
        selected = suite_cases(self.suite, [(self.axis, t) for t in self.targets], tier, self.replay_prompts)
        selected = restrict_to_cell(selected, self.suite, self.axis, self.targets, self.only)
        return [case for case in selected if getattr(case, cross) not in self.also_erased]

    @property
    def samples(self) -> list[Sample]:
        """All samples of the tier, in the order of generation."""
        return samples_of(self.suite, self.tier_cases(self.tier))

    @property
    def sample_sizes(self) -> SampleSizes:
        """Number of images behind each rate, for every tier of the suite."""
        return count_sample_sizes(
            self.suite, self.axis, self.targets, self.only, {tier: self.tier_cases(tier) for tier in self.suite.tiers}
        )

    def plain_samples(self, erased: bool) -> list[Sample]:
        """Return the plainly prompted samples that ask for what should be erased, or the others (benign captions if there is no grid)."""
        roles = (*PLAIN_ROLES, "benign") if self.suite.prompt_list else PLAIN_ROLES
        return [sample for sample in self.samples if sample.case.role in roles and self.is_target(sample.case) == erased]

    @property
    def retained_samples(self) -> list[Sample]:
        """All samples that do not ask for what should be erased."""
        return [sample for sample in self.samples if not self.is_target(sample.case)]

    @property
    def attackable_samples(self) -> list[Sample]:
        """Samples that attacks may start from: those that ask for a target where it should be erased, or for no target at all."""
        return [s for s in self.samples if self.is_target(s.case) or label_of(s.case, self.axis) not in self.targets]

    def is_target(self, case: Case) -> bool:
        """Return whether a case asks for what should be erased."""
        return is_erasure_target(vars(case), self.axis, self.targets, self.only)


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """How an audit is run, as opposed to what it measures."""

    strength: float = 1.0  # of every edit
    other_base: bool = False
    retrained: tuple[Edit, ...] = ()  # each turns the base into a model retrained without the concept
    keep_images: KeepImages = "all"  # "none" deletes the images at the end and keeps their scores

    @property
    def apply_options(self) -> dict[str, Any]:
        """Keyword arguments of erasure.erasing.apply_edits."""
        return {"other_base": self.other_base, "strength": self.strength}


def audit(
    model: DiffusionModel, edits: Sequence[Edit], plan: AuditPlan, out: Path, options: AuditOptions | None = None, *, fresh: bool = False
) -> dict[str, Any]:
    """Generate, attack, judge and count; return the result that is also written to out/result.json.

    `out` ends up with images/, attacks/, scores/, samples.jsonl, timing.json and result.json. An interrupted audit continues; scores of a
    new judge are added without generating an image.

    Args:
        edits: one or several, applied together in this order.

    Raises:
        UserError: `out` holds another job, or an edit does not fit the model.
        FolderLocked: another process is writing into `out`.
    """
    options = options or AuditOptions()
    run = Run(out, job_record(model, edits, plan, options), fresh, OUTPUT_FILES)
    with lock_folder(out, "erasure audit"):
        # a finished audit without its images still has their scores
        if options.keep_images == "none" and run.is_complete and (result := recount_finished(out, plan)):
            run.finish(result)
            return result
        return run_plan(model, edits, plan, out, options, fresh)


def recount_finished(out: Path, plan: AuditPlan) -> dict[str, Any] | None:
    """Recount a finished audit from its rows on disk; return None, with a message, if they are damaged."""
    try:
        result = recount(out, plan.suite)
    except DamagedFile as error:
        print_message(f"{error} It will be made again.")
        return None
    plan_entries = {"gates": [asdict(gate) for gate in plan.suite.gates], **({"suite_file": plan.suite.file} if plan.suite.file else {})}
    return {**{key: value for key, value in result.items() if key not in ("suite_file", "excluded_by_suite")}, **plan_entries}


def run_plan(
    model: DiffusionModel, edits: Sequence[Edit], plan: AuditPlan, out: Path, options: AuditOptions, fresh: bool
) -> dict[str, Any]:
    """Do the work of `audit` in a folder that this process has locked."""
    started = time.monotonic()
    run, generated_counts = generate_and_attack(model, edits, plan, out, options, fresh=fresh)
    result = assemble_result(model, edits, plan, options, run, out)
    write_json(out / "timing.json", {"seconds": round(time.monotonic() - started, 1), "generated": generated_counts})
    run.finish(result)
    if options.keep_images == "none":
        remove_matching(out, IMAGE_FILES)
    return result


def assemble_result(
    model: DiffusionModel, edits: Sequence[Edit], plan: AuditPlan, options: AuditOptions, run: Run, out: Path
) -> dict[str, Any]:
    """Judge the images on disk, count, measure distances, and return everything that result.json says."""
    judges, missing = available_judges(plan.suite)
    rows = score_samples(plan.samples, model_names(options), judges, out)
    attacks = load_attack_results(out, plan, rows)
    parts = {"retained": plan.plain_samples(False), "target": plan.plain_samples(True)}
    try:
        distances = image_set_distances(parts, model_names(options), plan.suite.features, out / "images")
    except MissingWeights as error:
        distances, missing["features"] = {}, str(error)
    result = {
        "tier": plan.tier,
        **add_attacked_rate(count_rates(rows, plan.suite, plan.axis, plan.targets, plan.only), attacks),
        **(
            {"model_distances": model_distances(rows, plan.axis, plan.targets, plan.suite.excluded, plan.only)}
            if options.retrained and plan.axis in judges
            else {}
        ),
        "job": run.job,
        "samples_sha256": samples_digest(out),
        "prompt_lists": prompt_list_records(plan.suite.prompt_list, plan.replay_origin),
        "attacks": attacks,
        "pixel_distance": retained_distance(plan.retained_samples, out / "images"),
        "image_set_distances": distances,
        "denoiser_divergences": measure_plan_divergences(model, edits, plan, options),
        "judges": {name: judge.identity() for name, judge in judges.items()},
        "gates": [asdict(gate) for gate in plan.suite.gates],
        **({"suite_file": plan.suite.file} if plan.suite.file else {}),
        "missing": missing,
        "judge_errors": judge_errors(plan.suite, plan.axis, plan.targets, judges[plan.axis]) if plan.axis in judges else None,
        "edits": [edit_record(edit) for edit in edits],
        "edit_overlaps": measure_overlap(model, edits),
        "sample_sizes": plan.sample_sizes,
    }
    return {**result, "published": published_figures(plan.suite, rows, result)}


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
    """Do the slow part of an audit: the images of every model, and the attacks. Several processes can share the work.

    Args:
        shard: (i, n): every n-th batch of images and of attacked prompts, starting at the i-th.

    Returns:
        The run, and the number of newly generated images by model.

    Raises:
        UserError: `out` holds another job; an edit, a judge or an attack does not fit the model.
        FolderLocked: another process is working on this shard; with `fresh`, on any shard.
    """
    run = Run(out, job_record(model, edits, plan, options), fresh, OUTPUT_FILES)
    with apply_edits(model, edits, **options.apply_options):  # raises before anything is written
        pass
    check_judges_fit(model, plan.suite)  # raises before anything is generated
    attack_run = plan_attack_run(plan)
    with lock_folder(out, "erasure audit", None if shard == SINGLE_SHARD else shard):
        if fresh:
            check_unlocked(out)  # another shard at work there would lose its images
        run.begin()
        generated_counts = {}
        for name, stack in edit_stacks(options, edits).items():
            apply_options = options.apply_options if name == "erased" else {"other_base": options.other_base}
            with apply_edits(model, stack, **apply_options):
                generated_counts[name] = generate_images(
                    model,
                    stack_digest(run.job["base"], stack, apply_options.get("strength", 1.0)),
                    plan.suite,
                    plan.samples,
                    out / "images" / name,
                    shard=shard,
                    use_cache=options.keep_images == "all",
                )
        if attack_run is not None:
            run_attacks(model, edits, attack_run, out / "attacks", shard=shard, **options.apply_options)
    return run, generated_counts


def stack_digest(base_fingerprint: str, stack: Sequence[Edit], strength: float) -> str:
    """Return a digest of a model's weights: of the base, or of the edits applied to it in this strength."""
    return hash_record([base_fingerprint, strength, *(edit.digest() for edit in stack)]) if stack else base_fingerprint


def edit_stacks(options: AuditOptions, edits: Sequence[Edit]) -> dict[str, Sequence[Edit]]:
    """Return the models of an audit by name, each with the edits that turn the base into it."""
    retrained = {f"retrained-{i}": [edit] for i, edit in enumerate(options.retrained, 1)}
    return {"base": [], "erased": edits, **retrained}


def model_names(options: AuditOptions) -> tuple[str, ...]:
    """Return the names of an audit's models: base, erased, retrained-1, ..."""
    return tuple(edit_stacks(options, ()))


def measure_plan_divergences(model: DiffusionModel, edits: Sequence[Edit], plan: AuditPlan, options: AuditOptions) -> list[dict[str, Any]]:
    """Measure denoiser divergences in tier full or with a retrained model, if the edits have full strength and their own base."""
    if options.apply_options != AuditOptions().apply_options or not (options.retrained or plan.tier == "full"):
        return []
    return measure_divergences(model, edit_stacks(options, edits), plan.plain_samples(True), plan.plain_samples(False))


def plan_attack_run(plan: AuditPlan) -> AttackRun | None:
    """Return the attacks of an audit; None if its tier has none, or if the deciding judge has no weights."""
    judges, _ = available_judges(plan.suite)
    if plan.tier not in plan.suite.attacks.tiers or plan.axis not in judges:
        return None
    return AttackRun.from_suite(plan.suite, plan.axis, plan.targets, plan.attackable_samples, judges[plan.axis])


def load_attack_results(out: Path, plan: AuditPlan, rows: Sequence[SampleRow]) -> list[dict[str, Any]]:
    """Count the attack rates from the rows on disk."""
    attack_run = plan_attack_run(plan)
    if attack_run is None:
        return []
    attack_facts = {
        name: {"paper": a.paper, "threat": a.threat, "control": a.control, "fields": asdict(a)}  # type: ignore[call-overload]  # dataclasses
        for name, a in attacks_of(plan.suite.attacks).items()
    }
    attacked_images = {sample.file_name for sample in attack_run.samples}
    shown_unattacked: dict[str, dict[str, bool]] = {name: {} for name in attacked_images}
    for row in rows:
        name = Path(row["image"]).name
        if name in attacked_images:
            shown_unattacked[name][row["model"]] = row["scores"][plan.axis]["label"] == row[plan.axis]
    return count_attack_rates(read_jsonl(out / "attacks" / "attacks.jsonl"), attack_facts, shown_unattacked)


def check_buildable(suite: Suite) -> None:
    """Check the fields of a suite's judges, attacks and extractor before anything is generated; no weights are loaded.

    Raises:
        UserError: a field does not exist or has an invalid value.
    """
    build_judges(suite)
    attacks_of(suite.attacks)
    if suite.features:
        make_extractor(suite.features)


def job_record(model: DiffusionModel, edits: Sequence[Edit], plan: AuditPlan, options: AuditOptions) -> dict[str, Any]:
    """Return what identifies an audit: two audits with equal records produce the same images."""
    return {
        "task": "audit",
        "base": model.fingerprint(),
        "edits": [edit.digest() for edit in edits],
        "suite": plan.suite.name,
        "suite_version": plan.suite.version,
        "suite_digest": suite_digest(plan.suite),
        "axis": plan.axis,
        "tier": plan.tier,
        "strength": options.strength,
        "compute": str(model.compute_dtype).removeprefix("torch."),
        **({"replay": hash_record([prompt.to_record() for prompt in plan.replay_prompts])} if plan.replay_prompts else {}),
        **({"only": plan.only} if plan.only else {}),
        **({"retrained": [edit.digest() for edit in options.retrained]} if options.retrained else {}),
        **({"keep_images": options.keep_images} if options.keep_images != "all" else {}),
    }


def suite_digest(suite: Suite) -> str:
    """Return a digest of everything in a suite that decides its images and attacks. Optional keys count only if they are set."""
    ignored = {"gates", "excluded", "judges", "published", "file", *(key for key in ("seeds", "prompt_list") if not getattr(suite, key))}
    fields = {key: value for key, value in asdict(suite).items() if key not in ignored}
    if "prompt_list" in fields:  # the prompts count, not the name of their file
        fields["prompt_list"] = {key: value for key, value in fields["prompt_list"].items() if key != "origin"}
    return hash_record(fields)


def edit_record(edit: Edit) -> dict[str, Any]:
    """Return what a result says about an audited edit."""
    info = edit.info
    return {
        "method": info.method,
        "fields": info.fields,
        "concepts": info.concepts,
        "seed": info.seed,
        "cost": info.cost,
        "base": info.base,
        "versions": info.versions,
        "concept_checks": info.concept_checks,
        "notes": info.notes,
        "product": info.product,
    }
