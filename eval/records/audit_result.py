"""The result of an audit, as result.json holds it. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from eval.records.attacks import AttackNotRun, AttackRecord, FineTuningAttack, PromptSearch
from eval.records.axes import Axis
from eval.records.distances import DenoiserDivergence, ImageSetDistances, ModelDistance
from eval.records.fields import Count, EmptyIfNone, FiniteNumber, KeyUnlessEmpty, OpenMapping, OptionalKey, key_unless
from eval.records.gates import Gate
from eval.records.models import BASE, ERASED, AuditedModel
from eval.records.published import PublishedFigures
from eval.records.rates import AlignmentByPart, MeanEstimate, ModelFigures, PairedDifference, RateName

KeepImages = Literal["all", "none", "never"]
SuiteFormat = Literal["grid", "prompt_list"]
ListUse = Literal["prompts", "replay"]


@dataclass(frozen=True, kw_only=True)
class AuditJob:
    """What identifies an audit: two audits with equal jobs produce the same images."""

    task: Literal["audit"] = "audit"
    base: str  # fingerprint; of external images their digest
    edits: tuple[str, ...]  # digests
    suite: str
    suite_version: Count
    suite_digest: str
    axis: Axis
    tier: str
    strength: FiniteNumber
    compute: str  # precision
    resolution: Annotated[int, key_unless(0)] = 0  # height and width in pixels; 0: the model's own
    vae: Annotated[Literal["whole", "tiled"], key_unless("whole")] = "whole"  # how latents become images
    replay: KeyUnlessEmpty[str] = ""  # digest of the replayed list
    only: KeyUnlessEmpty[str] = ""  # label that the concept should be erased on alone (eval.suites.fine_grained); empty: everywhere
    retrained: KeyUnlessEmpty[tuple[str, ...]] = ()  # digests
    keep_images: Annotated[KeepImages, key_unless("all")] = "all"


@dataclass(frozen=True, kw_only=True)
class ErasedConcept:
    """A concept that an edit claims to erase."""

    name: str
    kind: str
    prompts: OptionalKey[tuple[str, ...]] = None
    anchor: OptionalKey[str] = None
    aliases: OptionalKey[tuple[str, ...]] = None


@dataclass(frozen=True, kw_only=True)
class ConceptCheckRecord:
    """Whether the base knows a concept (erasure.concept_check.ConceptCheck)."""

    name: str
    concept_influence: FiniteNumber
    nonsense_influence: FiniteNumber
    weakly_known: bool


@dataclass(frozen=True, kw_only=True)
class EditBase:
    """The model that an edit was made on."""

    source: str
    fingerprint: OptionalKey[str] = None
    family: OptionalKey[str] = None
    after: OptionalKey[tuple[str, ...]] = None  # digests of the edits that were applied
    resolution: OptionalKey[Count] = None  # of the images while it was made, if not the model's own
    vae: OptionalKey[str] = None  # "tiled", if latents became images in tiles


@dataclass(frozen=True, kw_only=True)
class AuditedEdit:
    """An audited edit, or the stand-in for external images, which come without one."""

    method: str
    fields: OpenMapping
    concepts: tuple[ErasedConcept, ...]
    seed: int
    cost: Mapping[str, Count]
    base: EditBase
    versions: OptionalKey[Mapping[str, str]] = None
    concept_checks: tuple[ConceptCheckRecord, ...]
    notes: OpenMapping  # figures of the method about itself
    product: str


@dataclass(frozen=True, kw_only=True)
class EditOverlap:
    """How much two edits change the same weights (erasure.edits.overlap.PairOverlap)."""

    first: str
    second: str
    shared: Count
    cosine: FiniteNumber | None
    warning: str


@dataclass(frozen=True, kw_only=True)
class PromptListFile:
    """A list file and its use (eval.suites.list_reader.PromptListOrigin)."""

    use: ListUse
    file: str
    sha256: str
    rows: Count
    prompts: Count  # rows that are used
    left_out: Mapping[str, Count]  # reason -> rows
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ExternalImagesSummary:
    """What external image files are like (eval.external_images.summarize_images)."""

    jpeg_count: Count
    n: Count
    sizes: Annotated[tuple[str, ...], Field(min_length=1)]
    per_cell_range: Annotated[tuple[Count, ...], Field(min_length=2, max_length=2)]
    seeds: tuple[Count, ...]


@dataclass(frozen=True, kw_only=True)
class JudgeErrors:
    """How often a judge was right about the targets, and of how many images."""

    true_positive: Count
    positive: Count
    true_negative: Count
    negative: Count


@dataclass(frozen=True, kw_only=True)
class AuditCounts:
    """What is counted from the rows of an audit (eval.scoring.counting.count_rates); no model has figures if a judge is missing."""

    axis: Axis
    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    suite_format: Annotated[SuiteFormat, key_unless("grid")] = "grid"
    kind: KeyUnlessEmpty[str] = ""  # of the concept of a prompt list
    models: Mapping[AuditedModel, ModelFigures]
    paired: Mapping[RateName, PairedDifference]
    clip_drop: OptionalKey[AlignmentByPart] = None  # base minus erased

    @property
    def erased(self) -> ModelFigures | None:
        """The figures of the erased model; None if nothing was counted."""
        return self.models.get(ERASED)

    @property
    def base(self) -> ModelFigures | None:
        """The figures of the base; None if nothing was counted or its images were not given."""
        return self.models.get(BASE)

    @property
    def is_prompt_list(self) -> bool:
        return self.suite_format == "prompt_list"


@dataclass(frozen=True, kw_only=True)
class AuditResult(AuditCounts):
    """The result of an audit."""

    tier: str
    job: AuditJob
    samples_sha256: str
    prompt_lists: OptionalKey[tuple[PromptListFile, ...]] = None  # None of external images
    external_images: OptionalKey[ExternalImagesSummary] = None
    attacks: tuple[AttackRecord, ...]
    pixel_distance: MeanEstimate | None
    image_set_distances: EmptyIfNone[ImageSetDistances]
    model_distances: KeyUnlessEmpty[tuple[ModelDistance, ...]] = ()  # to and between retrained models
    denoiser_divergences: tuple[DenoiserDivergence, ...]
    judges: Mapping[str, OpenMapping]  # identities by what they score: style, object, clip
    gates: OptionalKey[tuple[Gate, ...]] = None  # of the suite; None of an audit of an earlier version
    suite_file: KeyUnlessEmpty[str] = ""  # name of the user's suite file; empty for a shipped suite
    missing: Mapping[str, str]  # what has no weights -> why
    judge_errors: JudgeErrors | None
    edits: Annotated[tuple[AuditedEdit, ...], Field(min_length=1)]
    edit_overlaps: tuple[EditOverlap, ...]
    sample_sizes: KeyUnlessEmpty[Mapping[str, Mapping[RateName, Count]]] = field(default_factory=dict)  # tier -> rate -> images, if known
    published: EmptyIfNone[PublishedFigures]
    excluded_by_suite: Annotated[tuple[str, ...] | None, Field(exclude=True)] = None  # of a recount with another suite; never in a file

    @property
    def searches(self) -> Sequence[PromptSearch]:
        """The attacks that searched for prompts, controls included."""
        return [attack for attack in self.attacks if isinstance(attack, PromptSearch)]

    @property
    def fine_tunings(self) -> Sequence[FineTuningAttack]:
        return [attack for attack in self.attacks if isinstance(attack, FineTuningAttack)]

    @property
    def attacks_not_run(self) -> Sequence[AttackNotRun]:
        """The attacks that were skipped or crashed."""
        return [attack for attack in self.attacks if isinstance(attack, AttackNotRun)]

    @property
    def crashes(self) -> Mapping[str, str]:
        """The attacks that crashed, each with its error."""
        return {attack.name: attack.crashed for attack in self.attacks_not_run if attack.crashed}
