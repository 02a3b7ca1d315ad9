"""A judge says what is in a picture. It never generates one."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from erasure.errors import UserError


class MissingWeights(UserError):
    """A judge whose weights are not there; the judge was asked for rightly, so others can go on without it."""

    def __init__(self, name: str, location: str, remedy: str) -> None:
        super().__init__(name, location, remedy)  # all of them, so that the error survives pickling

    def __str__(self) -> str:
        name, location, remedy = self.args
        return f"{name} not found: looked for {location}; {remedy}."


@dataclass(frozen=True, kw_only=True)
class Judge(ABC):
    """Base of all judges; the module's name is the judge's name."""

    optional: ClassVar[bool] = False  # its weights do not come with this package
    image_size: ClassVar[int | None] = None  # the only width and height of pictures it reads; None: any

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What makes two judges the same: weights hash, labels, preprocessing, decision rule.

        Raises:
            MissingWeights: the weights are not there.
        """

    def possible_labels(self) -> Sequence[str]:
        """Every label it may give, beside "none"; empty: it gives none."""
        labels = self.identity().get("labels", ())
        return tuple(labels) if isinstance(labels, list | tuple | dict) else ()

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """One raw reading per image; images (B, 3, H, W) in [0, 1] with the prompts that made them."""
