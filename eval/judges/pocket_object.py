"""Pocket's object classifier: one of the objects of PocketCanvas, or none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eval.judges import _pocket
from eval.judges.base import Judge


@dataclass(frozen=True, kw_only=True)
class PocketObject(Judge):
    """Reads {"label", "p"} from 64x64 pictures."""

    def identity(self) -> dict[str, Any]:
        return _pocket.identity("object")

    def read(self, images: Tensor, prompts: Sequence[str]) -> list[dict[str, Any]]:
        return _pocket.read("object", images)
