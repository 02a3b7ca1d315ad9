"""How far a model's pictures lie from the base's: the same noise picture by picture, and as distributions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.generation import Attempt, batches
from eval.metrics._mmd import LEAST
from eval.metrics.distances import distances
from eval.metrics.features import extractor_of
from eval.metrics.kid import KID
from eval.metrics.picture_distance import PictureDistance
from eval.retrained.gap import pairs


def kept_distance(kept: Sequence[Attempt], images: Path) -> dict[str, float] | None:
    """How far the pictures that should stay moved: mean absolute difference to the base's, in [0, 1]; None without any."""
    if not kept:
        return None
    metric = PictureDistance()
    for (_, base), (_, erased) in zip(batches(kept, images / "base"), batches(kept, images / "erased"), strict=True):
        metric.update(base, erased)
    return {name: round(value, 5) for name, value in metric.compute()._asdict().items()}


def picture_distances(
    parts: Mapping[str, Sequence[Attempt]], models: Sequence[str], features: Mapping[str, Any], images: Path
) -> dict[str, Any]:
    """FID, KID and CMMD of every model's pictures to the base's, for each part of the suite; KID of different noise to retrained models.

    Args:
        features: the extractor, as a suite names it.

    Raises:
        MissingWeights: the extractor has none.
    """
    if not features:
        return {}
    extractor = extractor_of(features)
    found: dict[str, Any] = {"extractor": extractor.identity(), "parts": {}}
    for part, chosen in parts.items():
        seen = {
            name: torch.cat([extractor.features(pictures) for _, pictures in batches(chosen, images / name)]) for name in models if chosen
        }
        found["parts"][part] = {name: distances(seen["base"], seen[name], extractor.name) for name in seen if name != "base"}
        for first, second in pairs(tuple(seen)):
            between = {"first": first, "second": second, **kernel_distance(seen[first], seen[second])}
            found.setdefault("between", {}).setdefault(part, []).append(between)
    return found


def kernel_distance(first: Tensor, second: Tensor) -> dict[str, float | None]:
    """KID of features of the same prompts and noise, no picture compared with its own twin; None for fewer than three pictures."""
    if len(first) < LEAST:
        return {"value": None, "low": None, "high": None}
    metric = KID(pairs="excluded")
    metric.update(first, True)
    metric.update(second, False)
    value, low, high = metric.compute()
    return {name: float(f"{v:.6g}") for name, v in (("value", value), ("low", low), ("high", high))}
