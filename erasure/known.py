"""Does the frozen model know a concept at all? Its effect on the predictions, beside that of nonsense words."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from erasure.concept import Concept
from erasure.families.base import DiffusionModel
from erasure.seeds import stream

NONSENSE = ("zxqvu", "brimplefax", "wuggit", "ployndra", "glorp", "tremulon", "dorvane", "skelth")
WALKS, STEPS = 4, 8


class DoubtfulConcept(UserWarning):
    """The model hardly knows what is to be erased."""


@dataclass(frozen=True)
class Known:
    """Mean squared difference that a name makes to the prediction, over the mean square without it."""

    name: str
    concept: float
    nonsense: float  # the second largest of eight nonsense words in its place, each along its own walks; one may resemble a real word

    @property
    def doubtful(self) -> bool:
        return self.concept <= self.nonsense

    def warning(self) -> str:
        return (
            f"the model hardly knows {self.name!r}: the name moves its predictions by {self.concept:.4f}, "
            f"a nonsense word in its place by {self.nonsense:.4f}; check the spelling, or read a high erasure rate with care."
        )

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"doubtful": self.doubtful}


@torch.no_grad()
def known(model: DiffusionModel, concept: Concept, seed: int = 0) -> Known:
    """Walk under the bare name and under each nonsense word, from the same noise."""
    cond = model.encode([concept.name, *NONSENSE]).repeat_interleave(WALKS, 0)
    empty = model.encode([""]).expand(len(cond), -1, -1)
    moved, size = torch.zeros(1 + len(NONSENSE)), torch.zeros(1 + len(NONSENSE))
    noise = model.noise([stream(seed, 900_000 + w) for w in range(WALKS)]).repeat(1 + len(NONSENSE), 1, 1, 1)
    for step in model.walk(noise, cond, empty, STEPS, model.guidance):
        for total, part in ((moved, step.eps_cond - step.eps_uncond), (size, step.eps_uncond)):
            total += part.square().flatten(1).mean(1).unflatten(0, (-1, WALKS)).mean(1).cpu()
    influence = moved / size
    return Known(concept.name, round(influence[0].item(), 6), round(influence[1:].sort().values[-2].item(), 6))
