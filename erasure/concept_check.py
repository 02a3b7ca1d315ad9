"""Check whether the frozen model knows a concept: how far its name moves the predictions, compared with nonsense words."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from erasure.concept import Concept
from erasure.families.base import DiffusionModel
from erasure.families.batching import images_at_once
from erasure.families.cost import Cost
from erasure.families.sampling import TrajectoryStep
from erasure.training.fill_cache import load_or_compute

NONSENSE_WORDS = ("zxqvu", "brimplefax", "wuggit", "ployndra", "glorp", "tremulon", "dorvane", "skelth")
TRAJECTORIES, TRAJECTORY_STEPS = 4, 8
COMPARED_STEPS = slice(2, 4)  # on pocket, these steps separate known from unknown words best
POINT_COUNT = TRAJECTORIES * (COMPARED_STEPS.stop - COMPARED_STEPS.start)
MAX_LISTED_NAMES = 8  # names that a warning lists after the first
NOISE_SEED = 900_000  # first seed of the trajectories' noise, the same for every concept and job


class WeaklyKnownConcept(UserWarning):
    """The model hardly knows the concept to erase."""


@dataclass(frozen=True)
class ConceptCheck:
    """How far a name moves the predictions: the mean squared change, relative to the mean square without the name."""

    name: str
    concept_influence: float
    nonsense_influence: float  # the second largest of eight nonsense words, because one may resemble a real word

    @property
    def weakly_known(self) -> bool:
        return self.concept_influence <= self.nonsense_influence

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"weakly_known": self.weakly_known}


def describe_weakly_known(weakly_known: Sequence[ConceptCheck]) -> str:
    """Return one warning about all the names that move predictions no further than nonsense does."""
    message = f"{weakly_known[0].name!r}: the name moves its predictions by {weakly_known[0].concept_influence:.4f}"
    if others := [repr(check.name) for check in weakly_known[1:]]:
        message += f" (and {len(others)} more: {', '.join(others[:MAX_LISTED_NAMES])}{', ...' if len(others) > MAX_LISTED_NAMES else ''})"
    return (
        f"the model hardly knows {message}, a nonsense word in its place by {weakly_known[0].nonsense_influence:.4f}; "
        f"check the spelling, or read a high erasure rate with care."
    )


@torch.no_grad()
def check_concepts(model: DiffusionModel, concepts: Sequence[Concept]) -> list[ConceptCheck]:
    """Measure how far every bare name moves the predictions at points on trajectories of the empty prompt.

    The points and the influence of nonsense words depend only on the model and are cached, so another concept costs `POINT_COUNT`
    forward passes.
    """
    key = {
        "tensors": ("x_t", "t", "prediction", "nonsense"),
        "nonsense_words": NONSENSE_WORDS,
        "trajectories": TRAJECTORIES,
        "steps": TRAJECTORY_STEPS,
        "compared_steps": [COMPARED_STEPS.start, COMPARED_STEPS.stop],
    }
    points = load_or_compute(model, key, lambda: _record_points(model))
    nonsense_influence = round(points["nonsense"].sort().values[-2].item(), 6)
    return [ConceptCheck(concept.name, round(_influence(model, concept.name, points), 6), nonsense_influence) for concept in concepts]


def concept_check_cost(model: DiffusionModel, concepts: Sequence[Concept]) -> Cost:
    """Return the cost of `check_concepts`; the part that depends only on the model counts even if it comes from the cache."""
    words = len(NONSENSE_WORDS) + len(concepts)
    return Cost(unet_forwards=model.forwards_per_step * TRAJECTORIES * COMPARED_STEPS.stop + POINT_COUNT * words, text_forwards=1 + words)


def _record_points(model: DiffusionModel) -> dict[str, Tensor]:
    """Return x_t (P, C, h, w), t (P,) and predictions for "" on unguided trajectories, and the influence of each nonsense word (8,)."""
    empty, count = model.encode([""]), images_at_once(model, TRAJECTORIES)
    steps: list[list[TrajectoryStep]] = [[] for _ in range(COMPARED_STEPS.stop)]  # by step, those of all trajectories
    for start in range(0, TRAJECTORIES, count):
        noise = model.sample_noise([NOISE_SEED + i for i in range(start, min(start + count, TRAJECTORIES))])
        cond = empty.expand(len(noise))
        for k, step in enumerate(islice(model.trajectory(noise, cond, cond, TRAJECTORY_STEPS, guidance=1.0), COMPARED_STEPS.stop)):
            steps[k].append(step)
    compared = [step for parts in steps[COMPARED_STEPS] for step in parts]
    times = torch.cat([torch.full((len(s.x_t),), s.t) for s in compared])
    predictions = [s.pred_cond if s.pred_uncond is None else s.pred_uncond for s in compared]  # both are of the empty prompt
    points = {"x_t": torch.cat([s.x_t for s in compared]).cpu(), "t": times, "prediction": torch.cat(predictions).cpu()}
    return {**points, "nonsense": torch.tensor([_influence(model, word, points) for word in NONSENSE_WORDS])}


def _influence(model: DiffusionModel, name: str, points: dict[str, Tensor]) -> float:
    """Return mean |f(x_t, name) - f(x_t, empty)|^2 / mean |f(x_t, empty)|^2 of the predictions f over all points."""
    x_t, t, empty = (points[key].to(model.device) for key in ("x_t", "t", "prediction"))
    cond, count = model.encode([name]), images_at_once(model, len(x_t))
    named = torch.cat([model.predict(x, s, cond.expand(len(x))) for x, s in zip(x_t.split(count), t.split(count), strict=True)])
    return ((named - empty).square().mean() / empty.square().mean()).item()
