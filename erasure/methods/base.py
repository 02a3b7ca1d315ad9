"""The shapes an erasure method can have. A method knows no optimiser, device, progress bar or file."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from erasure.bank import Batch, Recording
from erasure.concept import Concept, Kind
from erasure.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A method's class is its configuration: fields are flags, YAML keys and what the edit records.

    `recipes` maps (kind, model family) to field values that differ from the paper's defaults; the key "prompts" sets the
    concept's training sentences.
    """

    paper: ClassVar[str]
    version: ClassVar[int] = 1  # raised when the meaning of a field changes
    recipes: ClassVar[dict[tuple[Kind, str], dict[str, Any]]] = {}


@dataclass
class Player:
    """What trains: named parameters and how its optimiser treats them."""

    parameters: dict[str, nn.Parameter]
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0


@dataclass
class Update:
    """One optimiser step of one player."""

    player: str
    loss: Tensor


@dataclass
class Play:
    """What a method sees of a training run."""

    predict: Callable[[Tensor, Tensor, list[str]], Tensor]  # eps(x_t, t, prompts) of the model as it is now
    state: dict[str, Tensor] = field(default_factory=dict)  # checkpointed


@dataclass(frozen=True, kw_only=True)
class Trained(Method):
    """A method with a training loop."""

    lr: float  # learning rate
    steps: int  # optimiser steps
    batch: int  # recorded rows per step
    optimiser: Literal["adam", "adamw"] = "adam"  # adamw decays weights

    def __post_init__(self) -> None:
        for name in ("lr", "steps", "batch"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name} must be positive, got {getattr(self, name)}.")

    @abstractmethod
    def record(self, concepts: list[Concept], seed: int) -> Recording:
        """What to ask the frozen model beforehand."""

    @abstractmethod
    def trains(self) -> str:
        """The region whose parameters move."""

    @abstractmethod
    def loss(self, play: Play, batch: Batch) -> Tensor:
        """The loss of one batch, a scalar."""

    def step(self, play: Play, batch: Batch) -> Iterator[Update]:
        """The updates of one iteration; the loop applies each as it is yielded."""
        yield Update("model", self.loss(play, batch))
