"""Does the frozen model know a concept at all? Its effect on the predictions, beside that of nonsense words."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from erasure.concept import SLOT, TEMPLATES, Concept, fill
from erasure.families.base import DiffusionModel

NONSENSE = ("zxqvu", "brimplefax", "wuggit", "ployndra")
WALKS, STEPS = 4, 6


@dataclass(frozen=True)
class Known:
    """Mean squared difference that a name makes to the prediction, over the mean square without it."""

    name: str
    concept: float
    nonsense: float  # the largest of four nonsense words in its place, at the points of the concept's own walks

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
    """Walk under the concept's shortest sentence and ask, at every point, for the sentence with nonsense words in its place."""
    template = min((p.partition("|")[0] for p in concept.prompts or TEMPLATES[concept.kind]), key=len) or SLOT
    cond = model.encode([fill(template, concept.name)]).expand(WALKS, -1, -1)
    empty = model.encode([""]).expand(WALKS, -1, -1)
    words = model.encode([fill(template, word) for word in NONSENSE])
    moved, size, others = 0.0, 0.0, torch.zeros(len(NONSENSE))
    noise = model.noise([seed * 1_000_003 + 900_000 + w for w in range(WALKS)])
    for step in model.walk(noise, cond, empty, STEPS, model.guidance):
        moved += (step.eps_cond - step.eps_uncond).square().mean().item()
        size += step.eps_uncond.square().mean().item()
        x_t, t = step.x_t.repeat(len(NONSENSE), 1, 1, 1), torch.full((WALKS * len(NONSENSE),), step.t, device=model.device)
        asked = model.predict(x_t, t, words.repeat_interleave(WALKS, 0)).unflatten(0, (len(NONSENSE), WALKS))
        others += (asked - step.eps_uncond).square().flatten(1).mean(1).cpu()
    return Known(concept.name, round(moved / size, 6), round(others.max().item() / size, 6))
