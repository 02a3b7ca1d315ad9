"""Pocket's object classifier: one of the objects of PocketCanvas, or none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from erasure.pocket.canvas import SIZE
from eval.judges import _pocket
from eval.judges.base import Judge
from eval.records.scores import LabelScore


@dataclass(frozen=True, kw_only=True)
class PocketObject(Judge):
    """Labels 64x64 images."""

    image_size: ClassVar[int | None] = SIZE

    def identity(self) -> dict[str, Any]:
        return _pocket.classifier_identity("object")

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[LabelScore]:
        return _pocket.classify("object", images)
