"""How far a model's images are from the base's: image by image from the same noise, and as distributions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from eval.generation import Sample, load_batches
from eval.metrics._mmd import MIN_IMAGES
from eval.metrics.distances import feature_distances
from eval.metrics.features import Extractor
from eval.metrics.kid import KID
from eval.metrics.pixel_distance import PixelDistance
from eval.records.distances import DistributionDistances, ImageSetDistances, ModelPairKid
from eval.records.fields import ImagePart
from eval.records.models import BASE, ERASED, AuditedModel
from eval.records.rates import MeanEstimate
from eval.retrained.retrain_gap import model_pairs


def retained_distance(samples: Sequence[Sample], images: Path) -> MeanEstimate | None:
    """Return how much the images to retain changed: mean absolute difference to the base's, in [0, 1]; None without samples."""
    if not samples:
        return None
    metric = PixelDistance()
    for (_, base_images), (_, erased_images) in zip(
        load_batches(samples, images / str(BASE)), load_batches(samples, images / str(ERASED)), strict=True
    ):
        metric.update(base_images, erased_images)
    estimate, low, high = (round(value, 5) for value in metric.compute())
    return MeanEstimate(estimate=estimate, low=low, high=high)


def image_set_distances(
    samples_by_part: Mapping[ImagePart, Sequence[Sample]], models: Sequence[AuditedModel], extractor: Extractor | None, images: Path
) -> ImageSetDistances | None:
    """Measure FID, KID and CMMD of every model's images to the base's, by part of the suite, and KID between retrained and other models.

    Args:
        extractor: of the features that are compared; None for no distances.

    Raises:
        MissingWeights: the extractor's weights are missing.
    """
    if extractor is None:
        return None
    parts: dict[ImagePart, dict[AuditedModel, DistributionDistances]] = {}
    kid_by_part: dict[ImagePart, tuple[ModelPairKid, ...]] = {}
    for part, samples in samples_by_part.items():
        features_by_model = {
            model: torch.cat([extractor.features(image_batch) for _, image_batch in load_batches(samples, images / str(model))])
            for model in models
            if samples
        }
        parts[part] = {
            model: feature_distances(features_by_model[BASE], features_by_model[model], extractor.name)
            for model in features_by_model
            if model != BASE
        }
        if pairs := model_pairs(tuple(features_by_model)):
            kid_by_part[part] = tuple(kid_of_different_noise(*pair, features_by_model) for pair in pairs)
    return ImageSetDistances(extractor=extractor.identity(), parts=parts, model_pairs=kid_by_part or None)


def kid_of_different_noise(first: AuditedModel, second: AuditedModel, features_by_model: Mapping[AuditedModel, Tensor]) -> ModelPairKid:
    """Return KID of two models' features (N, d) from the same prompts and noise, without such pairs."""
    if len(features_by_model[first]) < MIN_IMAGES:
        return ModelPairKid(first=first, second=second, value=None, low=None, high=None)
    metric = KID(pairs="excluded")
    metric.update(features_by_model[first], True)
    metric.update(features_by_model[second], False)
    value, low, high = (float(f"{bound:.6g}") for bound in metric.compute())
    return ModelPairKid(first=first, second=second, value=value, low=low, high=high)
