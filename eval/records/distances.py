"""How far models are from each other: by their images, by their predictions, and by what is counted. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from eval.records.fields import Count, FiniteNumber, ImagePart, IntervalList, OpenMapping, OptionalKey
from eval.records.models import AuditedModel

CountedMeasure = Literal["UA", "IRA", "CRA", "replacement_labels"]
Measure = Literal["UA", "IRA", "CRA", "replacement_labels", "kid_different_noise", "nats"]


@dataclass(frozen=True, kw_only=True)
class DistributionDistance:
    """FID, KID or CMMD of two image sets."""

    value: FiniteNumber | None
    low: FiniteNumber | None  # FID has no interval
    high: FiniteNumber | None
    reason: str | None  # why the value is missing
    n: Annotated[tuple[Count, ...], Field(min_length=2, max_length=2)]  # images of both sides
    extractor: str
    width: Count  # of a feature


@dataclass(frozen=True, kw_only=True)
class ComparedSets:
    """One metric in every comparison of a model with the base (eval.metrics.distances.feature_distances)."""

    all: DistributionDistance
    base_halves: DistributionDistance
    erased_halves: DistributionDistance
    different_noise: OptionalKey[DistributionDistance] = None  # of pairs, and not of FID


@dataclass(frozen=True, kw_only=True)
class DistributionDistances:
    """Every metric of a model's images to the base's."""

    fid: ComparedSets
    kid: ComparedSets
    cmmd: ComparedSets


@dataclass(frozen=True, kw_only=True)
class ModelPairKid:
    """KID between two models' images of different noise; values are None for fewer than three images."""

    first: AuditedModel
    second: AuditedModel
    value: FiniteNumber | None
    low: FiniteNumber | None
    high: FiniteNumber | None


@dataclass(frozen=True, kw_only=True)
class ImageSetDistances:
    """Distances between image sets (eval.metrics.image_distances.image_set_distances)."""

    extractor: OpenMapping  # its identity
    parts: Mapping[ImagePart, Mapping[AuditedModel, DistributionDistances]]
    model_pairs: OptionalKey[Mapping[ImagePart, tuple[ModelPairKid, ...]]] = None  # with a retrained model


@dataclass(frozen=True, kw_only=True)
class DivergenceDirections:
    """A divergence per image, from either model to the other, and their mean."""

    forward: IntervalList
    backward: IntervalList
    mean: IntervalList


@dataclass(frozen=True, kw_only=True)
class DivergenceFigures:
    """Both measures of a divergence, or why there are none (eval.retrained.divergences.compare_models)."""

    nats: OptionalKey[DivergenceDirections] = None
    mean_squared_error: OptionalKey[DivergenceDirections] = None
    skipped: OptionalKey[str] = None


@dataclass(frozen=True, kw_only=True)
class DenoiserDivergence(DivergenceFigures):
    """The divergence of a pair of models (eval.retrained.divergences.measure_divergences)."""

    part: ImagePart
    first: AuditedModel
    second: AuditedModel
    n: Count  # prompts


@dataclass(frozen=True, kw_only=True)
class ModelDistance:
    """A distance between two models (eval.retrained.retrain_gap.model_distances)."""

    measure: CountedMeasure
    first: AuditedModel
    second: AuditedModel
    value: IntervalList


@dataclass(frozen=True, kw_only=True)
class RetrainGap:
    """Where an erased model lies between its base and retrained models by one measure (eval.retrained.retrain_gap.retrain_gaps)."""

    measure: Measure
    title: str
    prompts: ImagePart
    base: IntervalList | None  # distance to the retrained models
    erased: IntervalList | None
    between_retrained: IntervalList | None  # of two of them
    gap_closed: IntervalList | None  # None if no gap was shown
