"""SSD: dampen the weights that matter much more for the concept than for the rest (Foster et al., arXiv:2308.07707)."""

from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erasure import prompt_templates
from erasure.concept import Concept, ConceptKind
from erasure.config.choices import Count, Region, ScheduleSteps
from erasure.config.seeds import derive_seed
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.cost import Cost
from erasure.methods.base import MethodResult, TrainingFree, exclude_concepts, unfreeze
from erasure.pocket import prompts as pocket_prompts
from erasure.training import saliency
from erasure.training.fill_cache import load_or_fill
from erasure.training.teacher_cache import CacheRole, TeacherCache, TeacherQuery, query_cost

_POCKET = {
    "trajectories": 96,
    "retain_trajectories": 176,
    "trajectory_steps": 25,
    "retain_prompts": pocket_prompts.RETAIN,
}


@dataclass(frozen=True, kw_only=True)
class SSD(TrainingFree):
    """Selective synaptic dampening, on the noise error of a diffusion model.

    With I_f and I_d the mean squared gradients of single samples of the concept and of what to retain, a selected weight becomes

        theta min(1, lambda I_d / I_f)

    The paper selects where I_f > alpha I_d. One alpha is a very different share of the weights for each concept, so the share is chosen
    here, and alpha follows. The released code squares the gradient of a batch instead of a sample's, and counts the concept into I_d.

    Raises:
        UserError: The share is outside (0, 1], or lambda is negative.
    """

    paper: ClassVar[str] = "arXiv:2308.07707"
    changes: ClassVar[str] = "a small share of all weights of the image network, made smaller once"
    when: ClassVar[str] = "for things, when one pass of gradients must do; made for classifiers, and the right share differs by concept"
    unfit: ClassVar[dict[ConceptKind, str]] = {
        "style": "on pocket's development style no share that was tried both hid it and kept the rest of its prompts (IPA)"
    }

    uses_mask: ClassVar[bool] = True  # a mask chooses which entries of the region change

    share: float = 0.03  # share of the region's weights that are dampened
    dampening: float = 0.5  # how much of a selected weight's relative importance for the rest is kept, lambda in the equation
    region: Region = "full"  # which weights may be dampened
    retain_prompts: tuple[str, ...] = prompt_templates.RETAIN  # prompts to retain; those that name the concept are left out
    trajectories: Count = 100  # generated images per concept; each gives one gradient
    retain_trajectories: Count = 176  # generated images of the retain prompts, in all; each gives one gradient
    trajectory_steps: ScheduleSteps = 50  # DDIM steps per image
    trajectory_guidance: float = 7.5  # classifier-free guidance of the images

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"--share must lie in (0, 1], got {self.share:g}.")
        if self.dampening < 0:
            raise UserError(f"--dampening must not be negative, got {self.dampening:g}.")

    def check_model(self, model: DiffusionModel) -> None:
        model.parameter_names(self.region)  # raises for a region that the model lacks

    def query(self, concepts: list[Concept], seed: int) -> TeacherQuery:
        return TeacherQuery(
            prompt_pairs=tuple(pair for concept in concepts for pair in concept.prompt_pairs()),
            trajectories=self.trajectories * len(concepts),
            steps=self.trajectory_steps,
            guidance=self.trajectory_guidance,
            seed=seed,
            retain_prompts=exclude_concepts(self.retain_prompts, concepts),
            retain_trajectories=self.retain_trajectories,
            store="latents",
        )

    def solve(self, model: DiffusionModel, concepts: list[Concept], seed: int) -> MethodResult:
        cache = load_or_fill(model, self.query(concepts, seed))
        with unfreeze(model, model.parameter_names(self.region)) as parameters, training_attention(model):
            concept, rest = (importance(model, cache, role, parameters, seed) for role in ("erase", "retain"))
            values = {name: p.detach().clone() for name, p in parameters.items()}
        masks = saliency.select_top(relative_importance(concept, rest), self.share, "histogram")
        factors = {name: dampening_factors(concept[name], rest[name], masks[name], self.dampening) for name in values}
        dampened = {name: (value * factors[name]).half().cpu() for name, value in values.items() if masks[name].any()}
        moved = {name: factor < 1 for name, factor in factors.items()}
        return MethodResult(dampened, {"mask": saliency.selected_fractions(moved)})

    def forecast_cost(self, model: DiffusionModel, concepts: list[Concept]) -> Cost:
        query = self.query(concepts, 0)
        count = query.trajectories + query.retain_trajectories
        forwards = query_cost(query, model.forwards_per_step) + count
        return Cost(unet_forwards=forwards, unet_backwards=count, sample_gradients=count, text_forwards=len(query.all_prompts()) + count)

    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {
        ("style", "pocket"): {**_POCKET, "share": 0.1, "prompts": pocket_prompts.STYLE},
        ("object", "pocket"): {**_POCKET, "prompts": pocket_prompts.OBJECT},
        ("person", "pocket"): {**_POCKET, "prompts": pocket_prompts.PERSON},
    }


@contextmanager
def training_attention(model: DiffusionModel) -> Any:
    """Use the attention that has a backward pass while the block runs."""
    model.set_attention(training=True)
    try:
        yield
    finally:
        model.set_attention(training=False)


def importance(
    model: DiffusionModel, cache: TeacherCache, role: CacheRole, parameters: dict[str, nn.Parameter], seed: int
) -> dict[str, Tensor]:
    """Return the mean of squared gradients of single samples, one fresh time and noise each, by parameter name."""
    indices = cache.latent_rows(role)
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for i in indices.tolist():
        loss = sample_loss(model, cache, i, derive_seed(seed, i))
        for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True), strict=True):
            if gradient is not None:
                total[name].addcmul_(gradient, gradient, value=1 / len(indices))
        model.cost.sample_gradients += 1
    return total


def sample_loss(model: DiffusionModel, cache: TeacherCache, index: int, seed: int) -> Tensor:
    """Return the error (scalar) on one final latent, noised at a time and with a noise that follow from a seed."""
    latents = cache.gather_latents(torch.tensor([index]), model.device)
    noise = model.sample_noise([seed])
    t = model.random_times(1, torch.Generator().manual_seed(seed))
    prediction = model.predict(model.add_noise(latents.x_0, noise, t), t, model.encode(latents.prompts))
    return F.mse_loss(prediction, model.schedule.target(latents.x_0, noise))


def relative_importance(concept: dict[str, Tensor], rest: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return I_f / I_d; weights that matter for nothing have a small floor instead of a division by zero."""
    floor = 1e-6 * mean_of(rest.values())
    return {name: values / (rest[name] + floor) for name, values in concept.items()}


def mean_of(tensors: Iterable[Tensor]) -> float:
    parts = list(tensors)
    return sum(float(part.sum()) for part in parts) / sum(part.numel() for part in parts)


def dampening_factors(concept: Tensor, rest: Tensor, mask: Tensor, dampening: float) -> Tensor:
    """Return min(1, lambda I_d / I_f) where the mask selects, and 1 elsewhere."""
    factors = (dampening * rest / concept.clamp(min=1e-30)).clamp(max=1)
    return torch.where(mask, factors, torch.ones_like(factors))
