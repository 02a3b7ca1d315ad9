"""How far a model's images are from the base's: image by image from the same noise, and as distributions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.generation import Sample, load_batches
from eval.metrics._mmd import MIN_IMAGES
from eval.metrics.distances import feature_distances
from eval.metrics.features import Extractor
from eval.metrics.kid import KID
from eval.metrics.pixel_distance import PixelDistance
from eval.retrained.retrain_gap import model_pairs


def retained_distance(samples: Sequence[Sample], images: Path) -> dict[str, float] | None:
    """Return how much the images to retain changed: mean absolute difference to the base's, in [0, 1]; None without samples."""
    if not samples:
        return None
    metric = PixelDistance()
    for (_, base_images), (_, erased_images) in zip(
        load_batches(samples, images / "base"), load_batches(samples, images / "erased"), strict=True
    ):
        metric.update(base_images, erased_images)
    return {name: round(value, 5) for name, value in metric.compute()._asdict().items()}


def image_set_distances(
    samples_by_part: Mapping[str, Sequence[Sample]], models: Sequence[str], extractor: Extractor | None, images: Path
) -> dict[str, Any]:
    """Measure FID, KID and CMMD of every model's images to the base's, by part of the suite, and KID between retrained and other models.

    Args:
        extractor: of the features that are compared; None for no distances.

    Raises:
        MissingWeights: the extractor's weights are missing.
    """
    if extractor is None:
        return {}
    record: dict[str, Any] = {"extractor": extractor.identity(), "parts": {}}
    for part, samples in samples_by_part.items():
        features_by_model = {
            name: torch.cat([extractor.features(image_batch) for _, image_batch in load_batches(samples, images / name)])
            for name in models
            if samples
        }
        record["parts"][part] = {
            name: feature_distances(features_by_model["base"], features_by_model[name], extractor.name)
            for name in features_by_model
            if name != "base"
        }
        for first, second in model_pairs(tuple(features_by_model)):
            pair = {"first": first, "second": second, **kid_of_different_noise(features_by_model[first], features_by_model[second])}
            record.setdefault("model_pairs", {}).setdefault(part, []).append(pair)
    return record


def kid_of_different_noise(first: Tensor, second: Tensor) -> dict[str, float | None]:
    """Return KID of features (N, d) from the same prompts and noise, without such pairs; values are None for fewer than three images."""
    if len(first) < MIN_IMAGES:
        return {"value": None, "low": None, "high": None}
    metric = KID(pairs="excluded")
    metric.update(first, True)
    metric.update(second, False)
    value, low, high = metric.compute()
    return {name: float(f"{bound:.6g}") for name, bound in (("value", value), ("low", low), ("high", high))}
