"""The report of an audit, as report.json holds it; report.schema.json is generated from it by scripts/write_schema.py. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, SerializerFunctionWrapHandler, model_serializer

from eval.records.attacks import AttackRecord
from eval.records.audit_result import PromptListFile, SuiteFormat
from eval.records.distances import DenoiserDivergence, ImageSetDistances, RetrainGap
from eval.records.fields import Count, Difference, EmptyIfNone, FiniteNumber, KeyUnlessEmpty, OpenMapping, OptionalKey, Proportion
from eval.records.gates import TIERS, GateDecision, VerdictState
from eval.records.models import RETRAINED_PATTERN, AuditedModel
from eval.records.published import PublishedFigures
from eval.records.rates import AlignmentByPart, MeanEstimate, PairedDifference, RateName

EXTERNAL_TIER = "external"  # of a result whose images no tier generated
AnyTier = Annotated[str, Field(json_schema_extra={"enum": [*TIERS, EXTERNAL_TIER]})]


@dataclass(frozen=True, kw_only=True)
class ReportVerdict:
    """The verdict, a summary of its gates, the reasons for it in sentences, and what to do next."""

    state: VerdictState
    summary: str
    reasons: tuple[str, ...]
    next_step: KeyUnlessEmpty[str] = ""  # reports of earlier versions have none


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where the gates came from."""

    digest: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    from_suite: bool  # whether the audit was made with them
    file: str | None  # that holds them; None: the shipped suite's


@dataclass(frozen=True, kw_only=True)
class ReportHead:
    """What is read again from a report: the verdict, where its thresholds came from, and the conclusions."""

    verdict: ReportVerdict
    thresholds: Thresholds
    conclusions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ReportSuite:
    """The suite of an audit."""

    name: str
    file: str | None  # the user's; None for a shipped suite
    version: Count
    tier: AnyTier
    format: SuiteFormat


@dataclass(frozen=True, kw_only=True)
class ReportModels:
    """The models of an audit by their digests."""

    base: str
    edits: tuple[str, ...]
    strength: FiniteNumber
    compute: str


@dataclass(frozen=True, kw_only=True)
class ReportedRate:
    """A rate of one model."""

    k: Count
    n: Count
    estimate: Proportion
    ci_low: Proportion
    ci_high: Proportion


@dataclass(frozen=True, kw_only=True)
class RateReport:
    """A rate of every model with its paired difference; each retrained model is a key of its own."""

    name: RateName
    title: str
    ci_method: str
    level: Proportion
    base: OptionalKey[ReportedRate] = None  # missing if external images came without the base's
    erased: ReportedRate
    retrained: Mapping[AuditedModel, ReportedRate]
    paired: PairedDifference | None

    @model_serializer(mode="wrap")
    def _write_models_as_keys(self, write: SerializerFunctionWrapHandler) -> Any:
        record = write(self)
        retrained = record.pop("retrained")
        return {**record, **retrained}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        fields = {key: value for key, value in core_schema.items() if key != "serialization"}
        schema = handler.resolve_ref_schema(handler(fields))
        retrained = schema["properties"].pop("retrained")
        schema["required"].remove("retrained")
        return {**schema, "patternProperties": {RETRAINED_PATTERN: next(iter(retrained["patternProperties"].values()))}}


@dataclass(frozen=True, kw_only=True)
class LabelCount:
    """How often images that ask for a label are labeled as it."""

    k: Count
    n: Count
    rate: Proportion


@dataclass(frozen=True, kw_only=True)
class LabelRates:
    """How often one label is still labeled as prompted, in base and erased model."""

    label: str
    base: OptionalKey[LabelCount] = None
    erased: LabelCount


@dataclass(frozen=True, kw_only=True)
class ReplacementLabel:
    """A label that the judge gave to images of the erased concept."""

    label: str
    k: Count
    n: Count


@dataclass(frozen=True, kw_only=True)
class CorrectedShare:
    """The share of a model's images that show the concept, corrected for the judge's errors."""

    model: AuditedModel
    estimate: OptionalKey[Proportion] = None  # missing if the judge is too bad to correct for
    low: OptionalKey[Proportion] = None
    high: OptionalKey[Proportion] = None
    youden: OptionalKey[Difference] = None
    warning: str  # empty if the judge is good enough


@dataclass(frozen=True, kw_only=True)
class Report(ReportHead):
    """The verdict and all evidence for it.

    Shares lie in [0, 1], differences in [-1, 1]; CLIP alignment is 100 x cosine; costs are passes per sample.
    """

    # 3: a rate has no base, and the pixel distance is null, if the base's images were not given; 4: the gap closed has bounds; 5: an open
    # gate says what would decide it, and a rate has the interval that decides its gate; 6: it names the file of the thresholds and of the
    # suite; 7: keys and values have new names
    schema_version: Literal[7] = 7
    gates: tuple[GateDecision, ...]
    suite: ReportSuite
    models: ReportModels
    concept: str
    only: KeyUnlessEmpty[str] = ""  # label of the other axis, if the concept was meant to be erased with it alone
    methods: tuple[str, ...]
    rates: tuple[RateReport, ...]
    corrected: tuple[CorrectedShare, ...]
    retained_by_label: tuple[LabelRates, ...]
    attacks: tuple[AttackRecord, ...]
    as_published: PublishedFigures | None  # as the protocol that the suite names counts them
    replacement_labels: tuple[ReplacementLabel, ...]
    clip_alignment: Mapping[AuditedModel, AlignmentByPart]
    clip_drop: EmptyIfNone[AlignmentByPart]  # base minus erased on the same prompts and noise
    retained_distance: MeanEstimate | None  # mean absolute difference of pixel values to the base's images
    image_set_distances: EmptyIfNone[ImageSetDistances]
    denoiser_divergences: tuple[DenoiserDivergence, ...]
    retrain_gap: tuple[RetrainGap, ...]
    cost: tuple[Mapping[str, Count], ...]
    judges: Mapping[str, OpenMapping]
    prompt_lists: tuple[PromptListFile, ...]
    warnings: tuple[str, ...]
    threats_to_validity: tuple[str, ...]
    not_measured: tuple[str, ...]
