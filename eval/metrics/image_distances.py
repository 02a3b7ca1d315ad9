"""How far a model's pictures lie from the base's: the same noise picture by picture, and as distributions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.generation import Sample, load_batches
from eval.metrics._mmd import MIN_IMAGES
from eval.metrics.distances import feature_distances
from eval.metrics.features import make_extractor
from eval.metrics.kid import KID
from eval.metrics.pixel_distance import PixelDistance
from eval.retrained.retrain_gap import model_pairs


def retained_distance(attempts: Sequence[Sample], images: Path) -> dict[str, float] | None:
    """How far the pictures that should stay moved: mean absolute difference to the base's, in [0, 1]; None without any."""
    if not attempts:
        return None
    metric = PixelDistance()
    for (_, base_images), (_, erased_images) in zip(
        load_batches(attempts, images / "base"), load_batches(attempts, images / "erased"), strict=True
    ):
        metric.update(base_images, erased_images)
    return {name: round(value, 5) for name, value in metric.compute()._asdict().items()}


def image_set_distances(
    attempts_by_part: Mapping[str, Sequence[Sample]], models: Sequence[str], extractor_settings: Mapping[str, Any], images: Path
) -> dict[str, Any]:
    """FID, KID and CMMD of every model's pictures to the base's, for each part of the suite; KID of different noise to retrained models.

    Args:
        features: the extractor, as a suite names it.

    Raises:
        MissingWeights: the extractor has none.
    """
    if not extractor_settings:
        return {}
    extractor = make_extractor(extractor_settings)
    record: dict[str, Any] = {"extractor": extractor.identity(), "parts": {}}
    for part, attempts in attempts_by_part.items():
        features_by_model = {
            name: torch.cat([extractor.features(image_batch) for _, image_batch in load_batches(attempts, images / name)])
            for name in models
            if attempts
        }
        record["parts"][part] = {
            name: feature_distances(features_by_model["base"], features_by_model[name], extractor.name)
            for name in features_by_model
            if name != "base"
        }
        for first, second in model_pairs(tuple(features_by_model)):
            pair = {"first": first, "second": second, **kid_of_different_noise(features_by_model[first], features_by_model[second])}
            record.setdefault("between", {}).setdefault(part, []).append(pair)
    return record


def kid_of_different_noise(first: Tensor, second: Tensor) -> dict[str, float | None]:
    """KID of features of the same prompts and noise, no picture compared with its own twin; None for fewer than three pictures."""
    if len(first) < MIN_IMAGES:
        return {"value": None, "low": None, "high": None}
    metric = KID(pairs="excluded")
    metric.update(first, True)
    metric.update(second, False)
    value, low, high = metric.compute()
    return {name: float(f"{bound:.6g}") for name, bound in (("value", value), ("low", low), ("high", high))}
