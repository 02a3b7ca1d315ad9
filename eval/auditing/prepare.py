"""PreparedAudit: everything that an audit needs to know, computed once and passed down."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from erasure.edits import Edit, apply_edits
from erasure.families.base import DiffusionModel
from erasure.storage.run import Run, hash_record, run_folder_of
from eval.attack_runs.attack_run import AttackRun, build_attacks
from eval.attacks.base import Attack
from eval.auditing.plan import AuditPlan
from eval.judges.base import Judge
from eval.metrics.features import Extractor, make_extractor
from eval.scoring.counting import AXES
from eval.scoring.judge_scores import available_judges, check_image_size
from eval.suites.formats import JudgePart, Suite

KeepImages = Literal["all", "none"]
IMAGE_FILES = ("images/*/*-[0-9][0-9]*.png", "images/*/uncached/*/*.png", "attacks/*/[0-9][0-9][0-9][0-9].png")
# everything an audit writes into its folder; --fresh removes exactly these files
OUTPUT_FILES = (
    *("report.html", "report.json", "junit.xml", "samples.jsonl", "timing.json"),
    *(f"scores/{part}-*.jsonl" for part in (*AXES, "clip")),
    *("attacks/judge.json", "attacks/attacks.jsonl", "attacks/*/curve.json", "attacks/*/[0-9][0-9][0-9][0-9].json"),
    *("attacks/*/prepared.safetensors", "attacks/*/fitted.safetensors", *IMAGE_FILES),
)


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """How an audit is run, as opposed to what it measures."""

    strength: float = 1.0  # of every edit
    other_base: bool = False
    retrained: tuple[Edit, ...] = ()  # each turns the base into a model retrained without the concept
    keep_images: KeepImages = "all"  # "none" deletes the images at the end and keeps their scores


@dataclass(frozen=True)
class EditStack:
    """A model of an audit: the edits that turn the base into it."""

    name: str  # base, erased, retrained-1, ...
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
    job: dict[str, Any]  # what identifies the audit (eval.records.AuditJob)
    stacks: tuple[EditStack, ...]
    judges: Mapping[JudgePart, Judge]
    missing: Mapping[str, str]  # the reason for every judge without weights
    extractor: Extractor | None  # of the features by which image sets are compared
    attack_run: AttackRun | None  # None: the tier has no attacks, or the judge that decides has no weights

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the models: base, erased, retrained-1, ..."""
        return tuple(stack.name for stack in self.stacks)

    def open_run(self) -> Run:
        """Return the run in the audit's folder.

        Raises:
            UserError: the folder holds something else.
        """
        return Run(self.out, self.job, self.fresh, OUTPUT_FILES)


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
    outs = [folder or run_folder_of(job) for folder, job in zip(folders, jobs, strict=True)]
    for out, job in zip(outs, jobs, strict=True):
        Run(out, job, fresh, OUTPUT_FILES)  # raises if the folder holds something else
    with apply_edits(model, edits, options.other_base, options.strength):  # raises if an edit does not fit
        pass
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
    retrained = [EditStack(f"retrained-{i}", (edit,), 1.0, stack_digest(base, [edit], 1.0)) for i, edit in enumerate(options.retrained, 1)]
    erased = EditStack("erased", tuple(edits), options.strength, stack_digest(base, edits, options.strength))
    return (EditStack("base", (), 1.0, base), erased, *retrained)


def stack_digest(base: str, edits: Sequence[Edit], strength: float) -> str:
    """Return a digest of the weights that edits give in this strength; `base` is the base's fingerprint."""
    return hash_record([base, strength, *(edit.digest() for edit in edits)])


def plan_attack_run(plan: AuditPlan, judges: Mapping[JudgePart, Judge], attacks: dict[str, Attack]) -> AttackRun | None:
    """Return the attacks of an audit; None if its tier has none, or if the deciding judge has no weights."""
    if plan.tier not in plan.suite.attacks.tiers or plan.axis not in judges:
        return None
    return AttackRun.from_suite(plan.suite, plan.axis, plan.targets, plan.attackable_samples, judges[plan.axis], attacks)


def job_record(model: DiffusionModel, base: str, edits: Sequence[Edit], plan: AuditPlan, options: AuditOptions) -> dict[str, Any]:
    """Return what identifies an audit: two audits with equal records produce the same images.

    Args:
        base: the base's fingerprint.
    """
    return {
        "task": "audit",
        "base": base,
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
    """Return a digest of everything in a suite that decides its images and attacks. The prompts of a list count, not its file."""
    ignored = ("gates", "excluded", "judges", "published", "file", "origin")
    return hash_record({key: value for key, value in asdict(suite).items() if key not in ignored})
