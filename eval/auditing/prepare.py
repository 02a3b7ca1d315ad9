"""PreparedAudit: everything that an audit needs to know, computed once and passed down."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from erasure.edits import Edit, apply_edits
from erasure.errors import UserError, unknown_value_error
from erasure.families.base import DiffusionModel
from erasure.storage.run import Run, hash_record, run_folder_of
from eval.attack_runs.attack_run import AttackRun, build_attacks
from eval.attacks.base import Attack
from eval.auditing.plan import AuditPlan
from eval.judges.base import Judge
from eval.metrics.features import Extractor, make_extractor
from eval.records.audit_result import AuditJob, KeepImages
from eval.records.axes import AXES
from eval.records.convert import to_record
from eval.records.models import BASE, ERASED, AuditedModel, retrained_model
from eval.scoring.judge_scores import available_judges, check_image_size
from eval.suites.formats import JudgePart, Suite

IMAGE_FILES = ("images/*/*-[0-9][0-9]*.png", "images/*/uncached/*/*.png", "attacks/*/[0-9][0-9][0-9][0-9].png")
# everything an audit writes into its folder; --fresh removes exactly these files
OUTPUT_FILES = (
    *("report.html", "report.json", "junit.xml", "manifest.json", "attestation.json", "inspect-log.json", "samples.jsonl", "timing.json"),
    *(f"scores/{part}-*.jsonl" for part in (*AXES, "clip")),
    *("attacks/judge.json", "attacks/attacks.jsonl", "attacks/*/curve.json", "attacks/*/[0-9][0-9][0-9][0-9].json"),
    *("attacks/*/prepared.safetensors", "attacks/*/fitted.safetensors", *IMAGE_FILES),
)


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """How an audit is run, as opposed to what it measures.

    Raises:
        UserError: `keep_images` has another value.
    """

    strength: float = 1.0  # of every edit
    other_base: bool = False
    retrained: tuple[Edit, ...] = ()  # each turns the base into a model retrained without the concept
    keep_images: KeepImages = "all"  # none: delete the images at the end and keep their scores; never: keep them in memory only

    def __post_init__(self) -> None:
        if self.keep_images not in get_args(KeepImages):
            raise unknown_value_error("keep_images", self.keep_images, get_args(KeepImages))


@dataclass(frozen=True)
class EditStack:
    """A model of an audit: the edits that turn the base into it."""

    model: AuditedModel
    edits: tuple[Edit, ...]
    strength: float
    weights_digest: str  # of the weights that result


@dataclass(frozen=True, kw_only=True)
class PreparedAudit:
    """An audit that is ready to run. Building one reads the weights of base and judges, and writes nothing."""

    model: DiffusionModel
    edits: tuple[Edit, ...]
    plan: AuditPlan
    options: AuditOptions
    out: Path  # the audit's folder
    fresh: bool  # start over instead of continuing
    job: AuditJob
    stacks: tuple[EditStack, ...]
    judges: Mapping[JudgePart, Judge]
    missing: Mapping[str, str]  # the reason for every judge without weights
    extractor: Extractor | None  # of the features by which image sets are compared
    attack_run: AttackRun | None  # None: the tier has no attacks, or the judge that decides has no weights

    @property
    def models(self) -> tuple[AuditedModel, ...]:
        """The models of the audit: base, erased, retrained-1, ..."""
        return tuple(stack.model for stack in self.stacks)

    def open_run(self) -> Run:
        """Return the run in the audit's folder.

        Raises:
            UserError: the folder holds something else.
        """
        return Run(self.out, to_record(self.job), self.fresh, OUTPUT_FILES)


def prepare_audit(
    model: DiffusionModel, edits: Sequence[Edit], plan: AuditPlan, out: Path, options: AuditOptions | None = None, *, fresh: bool = False
) -> PreparedAudit:
    """Prepare one audit; see `prepare_audits`."""
    (prepared,) = prepare_audits(model, edits, [plan], [out], options, fresh=fresh)
    return prepared


def prepare_audits(
    model: DiffusionModel,
    edits: Sequence[Edit],
    plans: Sequence[AuditPlan],
    folders: Sequence[Path | None],
    options: AuditOptions | None = None,
    *,
    fresh: bool = False,
) -> tuple[PreparedAudit, ...]:
    """Prepare audits of the same edits, such as one for styles and one for objects; what they share is computed once.

    Args:
        edits: one or several, applied together in this order.
        plans: of one suite.
        folders: one for each plan; None for runs/<hash of the job>.
        fresh: start over if a folder holds another audit.

    Raises:
        UserError: a folder holds another job; an edit, a judge or an attack does not fit the model.
    """
    options, suite = options or AuditOptions(), plans[0].suite
    base = model.fingerprint()
    jobs = [job_record(model, base, edits, plan, options) for plan in plans]
    outs = [folder or run_folder_of(to_record(job)) for folder, job in zip(folders, jobs, strict=True)]
    for out, job in zip(outs, jobs, strict=True):
        Run(out, to_record(job), fresh, OUTPUT_FILES)  # raises if the folder holds something else
    with apply_edits(model, edits, options.other_base, options.strength):  # raises if an edit does not fit
        pass
    if options.keep_images == "never" and plans[0].tier in suite.attacks.tiers:
        raise UserError(
            f"tier {plans[0].tier} of suite {suite.name} has attacks, which record latents of images on disk; with --keep-images never "
            "choose a tier without them."
        )
    judges, missing = available_judges(suite)
    check_image_size(model, suite, judges)
    attacks = build_attacks(suite.attacks.use)
    extractor = make_extractor(suite.features) if suite.features else None
    return tuple(
        PreparedAudit(
            model=model,
            edits=tuple(edits),
            plan=plan,
            options=options,
            out=out,
            fresh=fresh,
            job=job,
            stacks=edit_stacks(base, edits, options),
            judges=judges,
            missing=missing,
            extractor=extractor,
            attack_run=plan_attack_run(plan, judges, attacks),
        )
        for plan, out, job in zip(plans, outs, jobs, strict=True)
    )


def edit_stacks(base: str, edits: Sequence[Edit], options: AuditOptions) -> tuple[EditStack, ...]:
    """Return the models of an audit: the base, the erased model, and any retrained ones.

    Args:
        base: the base's fingerprint.
    """
    erased = EditStack(ERASED, tuple(edits), options.strength, stack_digest(base, edits, options.strength))
    retrained = (
        EditStack(retrained_model(i), (edit,), 1.0, stack_digest(base, [edit], 1.0)) for i, edit in enumerate(options.retrained, 1)
    )
    return (EditStack(BASE, (), 1.0, base), erased, *retrained)


def stack_digest(base: str, edits: Sequence[Edit], strength: float) -> str:
    """Return a digest of the weights that edits give in this strength; `base` is the base's fingerprint."""
    return hash_record([base, strength, *(edit.digest() for edit in edits)])


def plan_attack_run(plan: AuditPlan, judges: Mapping[JudgePart, Judge], attacks: dict[str, Attack]) -> AttackRun | None:
    """Return the attacks of an audit; None if its tier has none, or if the deciding judge has no weights."""
    if plan.tier not in plan.suite.attacks.tiers or plan.axis not in judges:
        return None
    return AttackRun.from_suite(plan.suite, plan.axis, plan.targets, plan.attackable_samples, judges[plan.axis], attacks)


def job_record(model: DiffusionModel, base: str, edits: Sequence[Edit], plan: AuditPlan, options: AuditOptions) -> AuditJob:
    """Return what identifies an audit: two audits with equal records produce the same images.

    Args:
        base: the base's fingerprint.
    """
    return AuditJob(
        base=base,
        edits=tuple(edit.digest() for edit in edits),
        suite=plan.suite.name,
        suite_version=plan.suite.version,
        suite_digest=suite_digest(plan.suite),
        axis=plan.axis,
        tier=plan.tier,
        strength=options.strength,
        compute=str(model.compute_dtype).removeprefix("torch."),
        **model.image_options,
        replay=hash_record([prompt.to_record() for prompt in plan.replay_prompts]) if plan.replay_prompts else "",
        only=plan.only,
        retrained=tuple(edit.digest() for edit in options.retrained),
        keep_images=options.keep_images,
    )


def suite_digest(suite: Suite) -> str:
    """Return a digest of everything in a suite that decides its images and attacks. The prompts of a list count, not its file."""
    ignored = ("gates", "excluded", "judges", "published", "file", "origin")
    return hash_record({key: value for key, value in asdict(suite).items() if key not in ignored})
