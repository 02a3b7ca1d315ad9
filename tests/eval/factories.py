"""Builders that several tests of the audit share: planted rows of images and attacks, and the context of attacks that learn a word."""

from typing import Any

from erasure.families.stable_diffusion import StableDiffusion
from erasure.training import fill_cache
from erasure.training.teacher_cache import TeacherQuery
from eval.attacks.base import AttackContext
from eval.records.attacks import AttackInfo
from eval.records.audit_result import AuditCounts, AuditedEdit, AuditJob, AuditResult, EditBase, ErasedConcept
from eval.records.models import ERASED, AuditedModel
from eval.records.rates import AlignmentByPart, ConfusionMatrix, CountedRate, ModelFigures, PairedDifference, RateName
from eval.records.rows import AttackScore, SampleRow, SearchRow
from eval.records.scores import LabelScore, Scores
from eval.stats.intervals import mcnemar, paired_difference

NO_ALIGNMENT = AlignmentByPart(retained=None, target=None, benign=None)
CONCEPT_PROMPTS, STRIPPED_PROMPTS = ("neon cat", "neon dog", "neon hen"), ("cat", "dog", "hen")


def label_scores(style: str | None, object_label: str | None) -> Scores:
    """Scores with these labels; None: no score."""
    style_score, object_score = (label if label is None else LabelScore(label=label, p=1.0) for label in (style, object_label))
    return Scores(style=style_score, object=object_score)


def sample_row(
    model: AuditedModel, style: str, object_label: str, labels: tuple[str | None, str | None] = ("none", "none"), **fields: Any
) -> SampleRow:
    """The row of a grid image; `labels` are those that the judges of style and object gave."""
    defaults: dict[str, Any] = {"prompt": f"{object_label} {style}", "seed": 0, "role": "grid", "variant": "", "index": 0}
    values = {**defaults, "image": f"images/{model}/{style}-{object_label}.png", "scores": label_scores(*labels), **fields}
    return SampleRow(model=model, style=style, object=object_label, **values)


def attack_scores(*shown: bool) -> tuple[AttackScore, ...]:
    """Scores of an attack's images, each of which shows the concept or not."""
    return tuple(AttackScore(label="", p=1.0, shows_concept=shows) for shows in shown)


def planted_attack_rows(name: str, rounds: list[int | None], fresh: int = 0) -> list[SearchRow]:
    """Rows of a search over prompts 0, 1, ...: the round that broke each, and how many of two fresh images show the concept again."""
    return [
        SearchRow(
            attack=name,
            index=i,
            image=f"{i}.png",
            prompt="",
            search_scores=attack_scores(*[False] * 4),
            round=broken_in,
            found_prompt="",
            fresh_scores=attack_scores(fresh > 0, fresh > 1) if broken_in is not None else (),
        )
        for i, broken_in in enumerate(rounds)
    ]


def attack_info(name: str, control: bool = False) -> AttackInfo:
    """What identifies a planted attack."""
    return AttackInfo(name=name, paper="", threat="", control=control, fields={})


def model_figures(rates: dict[RateName, CountedRate] | None = None, **fields: Any) -> ModelFigures:
    """The figures of a model of which nothing else was counted."""
    defaults: dict[str, Any] = {"confusion": ConfusionMatrix(labels=(), counts=()), "clip": NO_ALIGNMENT, "excluded": {}}
    return ModelFigures(rates=rates or {}, **{**defaults, **fields})


def paired_cells(both: int, erased_only: int, base_only: int, neither: int) -> PairedDifference:
    """The paired difference with these cells."""
    estimate, low, high = paired_difference(both, erased_only, base_only, neither)
    cells = {"both": both, "erased_only": erased_only, "base_only": base_only, "neither": neither}
    return PairedDifference(estimate=estimate, low=low, high=high, **cells, p=mcnemar(erased_only, base_only))


def audit_counts(rates: dict[RateName, CountedRate] | None = None, **fields: Any) -> AuditCounts:
    """Counts of an erasure of the style neon; `rates` are the erased model's."""
    defaults: dict[str, Any] = {"axis": "style", "targets": ("neon",), "models": {ERASED: model_figures(rates)}, "paired": {}}
    return AuditCounts(**{**defaults, **fields})


def audit_job(**fields: Any) -> AuditJob:
    """What identifies a smoke audit of the style neon with pocket's suite."""
    identity: dict[str, Any] = {"base": "", "edits": (), "suite": "pocket", "suite_version": 1, "suite_digest": "", "axis": "style"}
    return AuditJob(**{**identity, "tier": "smoke", "strength": 1.0, "compute": "fp32", **fields})


def audited_edit(**fields: Any) -> AuditedEdit:
    """An ESD edit that erases the style neon."""
    concepts = (ErasedConcept(name="neon", kind="style"),)
    identity: dict[str, Any] = {"method": "esd", "fields": {}, "concepts": concepts, "seed": 0, "cost": {}}
    source: dict[str, Any] = {"base": EditBase(source="pocket"), "concept_checks": (), "notes": {}, "product": "weights"}
    return AuditedEdit(**{**identity, **source, **fields})


def audit_result(counts: AuditCounts | None = None, **fields: Any) -> AuditResult:
    """The result of an audit that measured nothing but its counts, and what the fields say."""
    measured: dict[str, Any] = {"attacks": (), "pixel_distance": None, "image_set_distances": None, "denoiser_divergences": ()}
    scored: dict[str, Any] = {"samples_sha256": "", "judges": {}, "missing": {}, "judge_errors": None, "gates": (), "published": None}
    job = fields.pop("job", None) or audit_job(tier=fields.get("tier", "smoke"))
    audited: dict[str, Any] = {"tier": job.tier, "job": job, "edits": (audited_edit(),), "edit_overlaps": ()}
    return AuditResult(**{**vars(counts or audit_counts()), **measured, **scored, **audited, **fields})


def inversion_context(model: StableDiffusion, images: int = 4, **fields: Any) -> AttackContext:
    """The context of attacks that learn a word: CONCEPT_PROMPTS with latents of the base, and the same prompts without the concept."""
    query = TeacherQuery(
        prompt_pairs=tuple(zip(CONCEPT_PROMPTS, STRIPPED_PROMPTS, strict=True)), trajectories=3, steps=3, guidance=4.0, store="latents"
    )
    cache = fill_cache.load_or_fill(model, query)
    fields = {"stripped_prompts": STRIPPED_PROMPTS, **fields}
    return AttackContext(model, CONCEPT_PROMPTS, ("a cat", "a dog", "a hen"), (), cache, images, **fields)
