"""SalUn: train only the salient weights so that the concept's pictures get another label (Fan et al., arXiv:2310.12508)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from erasure import prompt_templates as sentences
from erasure.concept import Concept, ConceptKind
from erasure.config.choices import Count, ScheduleSteps, Steps
from erasure.families.base import Cost, Region
from erasure.methods.base import OptimizerStep, TrainableGroup, Trained, TrainingContext, exclude_concepts, unfreeze
from erasure.pocket import prompts as pocket
from erasure.training import saliency
from erasure.training.teacher_cache import LatentBatch, TeacherQuery

_POCKET = {
    "steps": 150,
    "batch": 8,
    "retain_batch": 8,
    "retain_weight": 1.0,
    "walks": 96,
    "retain_walks": 176,
    "walk_steps": 25,
    "retain": pocket.RETAIN,
}
_SD = {"retain": sentences.RETAIN, "retain_walks": 112, "walks": 90}


@dataclass(frozen=True, kw_only=True)
class SalUn(Trained):
    """Saliency unlearning.

    Pictures of the concept and of what to keep are made by the model itself from sentences; their latents are used as they are. Or they
    come from folders of real images. Timesteps are drawn from the whole schedule, noise is fresh in every step.
    """

    paper: ClassVar[str] = "arXiv:2310.12508"
    changes: ClassVar[str] = "the most salient half of the UNet's weights"
    when: ClassVar[str] = "when attacks matter and some drift elsewhere is acceptable; needs sentences or pictures of what to keep"

    region: Region = "full"  # which weights may move, before the mask
    lr: float = 1e-5  # learning rate
    steps: Steps = 500  # optimiser steps
    batch: Count = 8  # forget samples per step
    retain_batch: Count = 8  # retain samples per step
    retain_weight: float = 0.1  # alpha, the weight of the retain term
    retain_prompts: tuple[str, ...] = sentences.RETAIN  # sentences to keep; those that name the concept are left out
    mask_fraction: float = 0.5  # share of the weights that may move
    mask_scope: Literal["all", "region"] = "all"  # whose gradients are ranked: the whole UNet's or the region's
    mask_guidance: float = 7.5  # w in (1 + w) eps(c) - w eps(empty), whose loss gives the gradients
    mask_threshold: saliency.ThresholdMethod = "histogram"  # how the ranking is cut: histogram, or exact kthvalue
    trajectories: Count = 100  # pictures of the concept
    retain_trajectories: Count = 100  # pictures of what to keep
    trajectory_steps: ScheduleSteps = 50  # DDIM steps of each
    trajectory_guidance: float = 7.5  # classifier-free guidance of the pictures
    images: str = ""  # folder of real images of the concept, in place of walks; hidden files are passed over
    retain_images: str = ""  # folder of real images of what to keep

    def __post_init__(self) -> None:
        super().__post_init__()
        saliency.check_fraction(self.mask_fraction)

    def query(self, concepts: list[Concept], seed: int) -> TeacherQuery:
        pairs = tuple(pair for concept in concepts for pair in concept.prompt_pairs())
        return TeacherQuery(
            prompt_pairs=pairs,
            trajectories=self.trajectories * len(concepts),
            steps=self.trajectory_steps,
            guidance=self.trajectory_guidance,
            seed=seed,
            retain_prompts=exclude_concepts(self.retain_prompts, concepts),
            retain_trajectories=self.retain_trajectories,
            store="latents",
            images=self.images,
            retain_images=self.retain_images,
        )

    def prepare(self, context: TrainingContext, groups: dict[str, TrainableGroup]) -> None:
        """The mask, unless one was given: m = 1[|sum of gradients| >= gamma] (equation 4)."""
        ranked_names = context.model.parameter_names("full" if self.mask_scope == "all" and self.region != "text-encoder" else self.region)
        parameters = groups["model"].parameters
        if not context.masks:
            other_names = [name for name in ranked_names if name not in parameters]
            with unfreeze(context.model, other_names) as other_parameters:
                gradients = self._gradients(context, {**parameters, **other_parameters})
            masks = saliency.select_top(gradients, self.mask_fraction, self.mask_threshold)
            context.masks = {name: masks[name] for name in parameters}
        context.notes["mask"] = saliency.selected_fractions(context.masks)

    def _gradients(self, context: TrainingContext, parameters: dict[str, Any]) -> dict[str, Tensor]:
        """Summed over one pass through the forget set; the sign of the loss does not matter after the magnitude is taken."""
        indices = context.cache.latent_rows("erase")
        for batch_indices in indices.split(self.batch):
            latents = context.cache.gather_latents(batch_indices, context.model.device)
            x_t, t, noise = noise_latents(context, latents)
            cond, uncond = (context.predict(x_t, t, prompts) for prompts in (latents.prompts, [""] * len(t)))
            F.mse_loss((1 + self.mask_guidance) * cond - self.mask_guidance * uncond, noise).backward()
            context.model.cost.unet_backwards += 2 * len(t)
        gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in parameters.items()}
        for p in parameters.values():
            p.grad = None
        return gradients

    def step(self, context: TrainingContext) -> Iterator[OptimizerStep]:
        """MSE(eps(x_t^f, c_f), sg eps(x_t^f, anchor)) + alpha MSE(eps(x_t^r, c_r), noise), both of the model as it is (equation 6)."""
        erase_latents = context.sample_latents("erase", self.batch)
        x_t, t, _ = noise_latents(context, erase_latents)
        with torch.no_grad():
            label = context.predict(x_t, t, erase_latents.neutral_prompts)
        retain_latents = context.sample_latents("retain", self.retain_batch)
        x_r, t_r, noise = noise_latents(context, retain_latents)
        loss = F.mse_loss(context.predict(x_t, t, erase_latents.prompts), label)
        loss = loss + self.retain_weight * F.mse_loss(context.predict(x_r, t_r, retain_latents.prompts), noise)
        yield OptimizerStep("model", loss, self.batch + self.retain_batch)

    def step_cost(self, step: int) -> Cost:
        update_passes = self.batch + self.retain_batch
        return Cost(unet_forwards=self.batch + update_passes, unet_backwards=update_passes, sample_gradients=update_passes)

    def prepare_cost(self, query: TeacherQuery) -> Cost:
        count = 2 * query.trajectories  # a folder of images is counted when it is read
        return Cost(unet_forwards=count, unet_backwards=count)

    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {
        ("style", "pocket"): {**_POCKET, "lr": 1e-4, "prompts": pocket.STYLE, "anchor": "plain"},
        ("object", "pocket"): {**_POCKET, "lr": 1e-4, "prompts": pocket.OBJECT},
        ("person", "pocket"): {**_POCKET, "lr": 1e-4, "prompts": pocket.PERSON},
        # nothing below was run on real SD weights; lengths and weights follow the paper
        **{("style", family): {**_SD, "prompts": sentences.STYLE, "retain_weight": 0.5} for family in ("sd1", "sd2")},
        **{("object", family): {**_SD, "prompts": sentences.OBJECT, "retain_weight": 0.5} for family in ("sd1", "sd2")},
        **{("person", family): {**_SD, "prompts": sentences.PERSON, "retain_weight": 0.5} for family in ("sd1", "sd2")},
        **{("nsfw", family): {**_SD, "prompts": sentences.NSFW, "steps": 100} for family in ("sd1", "sd2")},
    }


def noise_latents(context: TrainingContext, latents: LatentBatch) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and the noise in it, for fresh t and noise."""
    noise = torch.randn(latents.x_0.shape).to(latents.x_0)
    t = torch.randint(1000, (len(noise),)).to(noise.device)
    return context.model.add_noise(latents.x_0, noise, t), t, noise
