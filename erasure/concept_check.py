"""Does the frozen model know a concept at all? How far its name moves the predictions, beside nonsense words in its place."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from erasure.concept import Concept
from erasure.families.base import Cost, DiffusionModel
from erasure.training.recording import remembered

NONSENSE = ("zxqvu", "brimplefax", "wuggit", "ployndra", "glorp", "tremulon", "dorvane", "skelth")
TRAJECTORIES, STEPS = 4, 8
ASKED = slice(2, 4)  # steps at which names are compared: on pocket, words it knows and words it does not lie furthest apart there
POINTS = TRAJECTORIES * (ASKED.stop - ASKED.start)
FEW = 8  # further names that a warning lists
SEED = 900_000  # of the trajectories' noise, the same for every concept and job


class DoubtfulConcept(UserWarning):
    """The model hardly knows what is to be erased."""


@dataclass(frozen=True)
class Known:
    """Mean squared difference that a name makes to the prediction, over the mean square without it."""

    name: str
    concept: float
    nonsense: float  # the second largest of eight nonsense words; one may resemble a real word

    @property
    def doubtful(self) -> bool:
        return self.concept <= self.nonsense

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"doubtful": self.doubtful}


def warning(doubtful: Sequence[Known]) -> str:
    """What to tell of the names that move predictions no further than nonsense does; one line however many there are."""
    first = f"{doubtful[0].name!r}: the name moves its predictions by {doubtful[0].concept:.4f}"
    if more := [repr(one.name) for one in doubtful[1:]]:
        first += f" (and {len(more)} more: {', '.join(more[:FEW])}{', ...' if len(more) > FEW else ''})"
    return (
        f"the model hardly knows {first}, "
        f"a nonsense word in its place by {doubtful[0].nonsense:.4f}; check the spelling, or read a high erasure rate with care."
    )


@torch.no_grad()
def known(model: DiffusionModel, concepts: Sequence[Concept]) -> list[Known]:
    """Ask for every bare name at points of trajectories that the empty prompt took.

    The points and the answers to nonsense words depend on the model alone and are kept in the cache, so a further concept costs
    `POINTS` forwards.
    """
    key = {"known": NONSENSE, "trajectories": TRAJECTORIES, "steps": STEPS, "asked": [ASKED.start, ASKED.stop]}
    points = remembered(model, key, lambda: _points(model))
    nonsense = round(points["nonsense"].sort().values[-2].item(), 6)
    return [Known(concept.name, round(_influence(model, concept.name, points), 6), nonsense) for concept in concepts]


def check_cost(concepts: Sequence[Concept]) -> Cost:
    """What `known` takes for some concepts; the model's own part is counted whether it was just made or found."""
    words = len(NONSENSE) + len(concepts)
    return Cost(unet_forwards=2 * TRAJECTORIES * ASKED.stop + POINTS * words, text_forwards=1 + words)


def _points(model: DiffusionModel) -> dict[str, Tensor]:
    """x_t, t and eps(x_t, empty) along unguided trajectories, (P, C, h, w) and (P,); "nonsense" (8,), how far each word moves them."""
    empty = model.encode([""]).expand(TRAJECTORIES, -1, -1)
    noise = model.noise([SEED + i for i in range(TRAJECTORIES)])
    steps = list(islice(model.walk(noise, empty, empty, STEPS, guidance=1.0), ASKED.stop))[ASKED]
    times = torch.tensor([step.t for step in steps]).repeat_interleave(TRAJECTORIES)
    points = {"x_t": torch.cat([s.x_t for s in steps]).cpu(), "t": times, "eps": torch.cat([s.eps_uncond for s in steps]).cpu()}
    return {**points, "nonsense": torch.tensor([_influence(model, word, points) for word in NONSENSE])}


def _influence(model: DiffusionModel, name: str, points: dict[str, Tensor]) -> float:
    """mean |eps(x_t, name) - eps(x_t, empty)|^2 / mean |eps(x_t, empty)|^2 over all points."""
    x_t, t, eps = (points[key].to(model.device) for key in ("x_t", "t", "eps"))
    named = model.predict(x_t, t, model.encode([name]).expand(len(x_t), -1, -1))
    return ((named - eps).square().mean() / eps.square().mean()).item()
