"""A judge says what is in a picture. It never generates one."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Judge(ABC):
    """Base of all judges; the module's name is the judge's name."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What makes two judges the same: weights hash, labels, preprocessing."""

    @abstractmethod
    def read(self, images: Tensor, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """One raw reading per image; images (B, 3, H, W) in [0, 1] with the prompts that made them."""
