"""Base class of judges. A judge says what an image shows; it never generates one."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from erasure.errors import UserError
from eval.records.scores import JudgeScore


class MissingWeights(UserError):
    """The weights of a judge are missing; the request itself is valid, so the other judges go on without it."""

    def __init__(self, name: str, location: str, remedy: str) -> None:
        super().__init__(name, location, remedy)  # all three, so that the error survives pickling

    def __str__(self) -> str:
        name, location, remedy = self.args
        return f"{name} not found: looked for {location}; {remedy}."


@dataclass(frozen=True, kw_only=True)
class Judge(ABC):
    """Base of all judges; the module's name is the judge's name."""

    optional: ClassVar[bool] = False  # its weights do not come with this package
    image_size: ClassVar[int | None] = None  # the only width and height of images it accepts, in pixels; None: any

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what makes two judges the same: weights hash, labels, preprocessing, decision rule.

        Raises:
            MissingWeights: the weights are missing.
        """

    def possible_labels(self) -> Sequence[str]:
        """Return every label it can give besides "none"; empty: it gives no labels."""
        labels = self.identity().get("labels", ())
        return tuple(labels) if isinstance(labels, list | tuple | dict) else ()

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str]) -> Sequence[JudgeScore]:
        """Return one raw score per image: a label, or the alignment with its prompt.

        Args:
            images: [B, 3, H, W] in [0, 1].
            prompts: B prompts that generated them.
        """
