"""Does the frozen model know a concept at all? How far its name moves the predictions, beside nonsense words in its place."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from erasure.concept import Concept
from erasure.families.base import Cost, DiffusionModel
from erasure.training.fill_cache import load_or_compute

NONSENSE_WORDS = ("zxqvu", "brimplefax", "wuggit", "ployndra", "glorp", "tremulon", "dorvane", "skelth")
TRAJECTORIES, TRAJECTORY_STEPS = 4, 8
COMPARED_STEPS = slice(2, 4)  # steps at which names are compared: on pocket, words it knows and words it does not lie furthest apart there
POINT_COUNT = TRAJECTORIES * (COMPARED_STEPS.stop - COMPARED_STEPS.start)
MAX_LISTED_NAMES = 8  # further names that a warning lists
NOISE_SEED = 900_000  # of the trajectories' noise, the same for every concept and job


class WeaklyKnownConcept(UserWarning):
    """The model hardly knows what is to be erased."""


@dataclass(frozen=True)
class ConceptCheck:
    """Mean squared difference that a name makes to the prediction, over the mean square without it."""

    name: str
    concept_influence: float
    nonsense_influence: float  # the second largest of eight nonsense words; one may resemble a real word

    @property
    def weakly_known(self) -> bool:
        return self.concept_influence <= self.nonsense_influence

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"doubtful": self.weakly_known}


def describe_weakly_known(weakly_known: Sequence[ConceptCheck]) -> str:
    """What to tell of the names that move predictions no further than nonsense does; one line however many there are."""
    message = f"{weakly_known[0].name!r}: the name moves its predictions by {weakly_known[0].concept_influence:.4f}"
    if others := [repr(check.name) for check in weakly_known[1:]]:
        message += f" (and {len(others)} more: {', '.join(others[:MAX_LISTED_NAMES])}{', ...' if len(others) > MAX_LISTED_NAMES else ''})"
    return (
        f"the model hardly knows {message}, "
        f"a nonsense word in its place by {weakly_known[0].nonsense_influence:.4f}; check the spelling, or read a high erasure rate with care."
    )


@torch.no_grad()
def check_concepts(model: DiffusionModel, concepts: Sequence[Concept]) -> list[ConceptCheck]:
    """Ask for every bare name at points of trajectories that the empty prompt took.

    The points and the answers to nonsense words depend on the model alone and are kept in the cache, so a further concept costs
    `POINTS` forwards.
    """
    key = {
        "known": NONSENSE_WORDS,
        "trajectories": TRAJECTORIES,
        "steps": TRAJECTORY_STEPS,
        "asked": [COMPARED_STEPS.start, COMPARED_STEPS.stop],
    }
    points = load_or_compute(model, key, lambda: _record_points(model))
    nonsense_influence = round(points["nonsense"].sort().values[-2].item(), 6)
    return [ConceptCheck(concept.name, round(_influence(model, concept.name, points), 6), nonsense_influence) for concept in concepts]


def concept_check_cost(concepts: Sequence[Concept]) -> Cost:
    """What `known` takes for some concepts; the model's own part is counted whether it was just made or found."""
    words = len(NONSENSE_WORDS) + len(concepts)
    return Cost(unet_forwards=2 * TRAJECTORIES * COMPARED_STEPS.stop + POINT_COUNT * words, text_forwards=1 + words)


def _record_points(model: DiffusionModel) -> dict[str, Tensor]:
    """x_t, t and eps(x_t, empty) along unguided trajectories, (P, C, h, w) and (P,); "nonsense" (8,), how far each word moves them."""
    empty_cond = model.encode([""]).expand(TRAJECTORIES, -1, -1)
    noise = model.sample_noise([NOISE_SEED + i for i in range(TRAJECTORIES)])
    steps = list(islice(model.trajectory(noise, empty_cond, empty_cond, TRAJECTORY_STEPS, guidance=1.0), COMPARED_STEPS.stop))[
        COMPARED_STEPS
    ]
    times = torch.tensor([step.t for step in steps]).repeat_interleave(TRAJECTORIES)
    points = {"x_t": torch.cat([s.x_t for s in steps]).cpu(), "t": times, "eps": torch.cat([s.eps_uncond for s in steps]).cpu()}
    return {**points, "nonsense": torch.tensor([_influence(model, word, points) for word in NONSENSE_WORDS])}


def _influence(model: DiffusionModel, name: str, points: dict[str, Tensor]) -> float:
    """mean |eps(x_t, name) - eps(x_t, empty)|^2 / mean |eps(x_t, empty)|^2 over all points."""
    x_t, t, eps_empty = (points[key].to(model.device) for key in ("x_t", "t", "eps"))
    eps_name = model.predict(x_t, t, model.encode([name]).expand(len(x_t), -1, -1))
    return ((eps_name - eps_empty).square().mean() / eps_empty.square().mean()).item()
