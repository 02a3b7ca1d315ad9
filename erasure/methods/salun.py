"""SalUn: train only the salient weights, so that images of the concept get another label (Fan et al., arXiv:2310.12508)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from erasure import prompt_templates
from erasure.concept import Concept, ConceptKind
from erasure.config.choices import Count, Region, ScheduleSteps, Steps, Weight
from erasure.families.cost import Cost
from erasure.families.pipelines import RELEASED_FAMILIES
from erasure.methods.base import OptimizerStep, TrainableGroup, Trained, TrainingContext, exclude_concepts, unfreeze
from erasure.pocket import prompts as pocket_prompts
from erasure.training import saliency
from erasure.training.teacher_cache import LatentBatch, TeacherQuery

_POCKET = {
    "steps": 150,
    "batch": 8,
    "retain_batch": 8,
    "retain_weight": 1.0,
    "trajectories": 96,
    "retain_trajectories": 176,
    "trajectory_steps": 25,
    "retain_prompts": pocket_prompts.RETAIN,
}
_SD = {"retain_prompts": prompt_templates.RETAIN, "retain_trajectories": 112, "trajectories": 90}


@dataclass(frozen=True, kw_only=True)
class SalUn(Trained):
    """Saliency unlearning.

    The model itself generates images of the concept and of what to retain, and their latents are used directly. Folders of real images
    can replace them. Timesteps are uniform over the whole schedule; every step has fresh noise.

    Raises:
        UserError: The mask fraction is outside (0, 1].
    """

    paper: ClassVar[str] = "arXiv:2310.12508"
    changes: ClassVar[str] = "the most salient half of the UNet's weights"
    uses_mask: ClassVar[bool] = True
    when: ClassVar[str] = "when attacks matter and some drift elsewhere is acceptable; needs prompts or images of what to retain"

    region: Region = "full"  # which weights may be trained, before the mask
    lr: float = 1e-5  # learning rate
    steps: Steps = 500  # optimizer steps
    batch: Count = 8  # samples of the concept per step
    retain_batch: Count = 8  # samples of what to retain per step
    retain_weight: Weight = 0.1  # weight of the retain loss, the paper's alpha
    retain_prompts: tuple[str, ...] = prompt_templates.RETAIN  # prompts to retain; those that name the concept are left out
    mask_fraction: float = 0.5  # fraction of the weights that the mask selects
    mask_scope: Literal["all", "region"] = "all"  # weights whose gradients are ranked: all of the UNet, or the region
    mask_guidance: float = 7.5  # w of the guided prediction (1 + w) eps(c) - w eps(empty) whose loss gives the gradients
    mask_threshold: saliency.ThresholdMethod = "histogram"  # how the ranking is cut: histogram (fast), or kthvalue (exact)
    trajectories: Count = 100  # generated images per concept
    retain_trajectories: Count = 100  # generated images of the retain prompts, in all
    trajectory_steps: ScheduleSteps = 50  # DDIM steps per image
    trajectory_guidance: float = 7.5  # classifier-free guidance of the images
    images: str = ""  # folder of real images of the concept, instead of generated ones; hidden files are skipped
    retain_images: str = ""  # folder of real images of what to retain, instead of generated ones

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

    @property
    def samples_per_backward(self) -> int:
        return self.batch + max(self.batch, self.retain_batch)  # of the mask: with and without the prompt

    def prepare(self, context: TrainingContext, groups: dict[str, TrainableGroup]) -> None:
        """Compute the mask m = 1[|sum of gradients| >= gamma] (equation 4), unless one is given."""
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
        """Return gradients summed over one pass through the concept's images; the sign of the loss does not matter for their magnitude."""
        indices = context.cache.latent_rows("erase")
        for batch_indices in indices.split(self.batch):
            latents = context.cache.gather_latents(batch_indices, context.model.device)
            x_t, t, target = noise_latents(context, latents)
            cond, uncond = (context.predict(x_t, t, prompts) for prompts in (latents.prompts, [""] * len(t)))
            F.mse_loss((1 + self.mask_guidance) * cond - self.mask_guidance * uncond, target).backward()
        gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in parameters.items()}
        for p in parameters.values():
            p.grad = None
        return gradients

    def step(self, context: TrainingContext) -> Iterator[OptimizerStep]:
        """MSE(eps(x_t^f, c_f), sg eps(x_t^f, anchor)) + alpha MSE(eps(x_t^r, c_r), noise), both by the current model (equation 6)."""
        erase_latents = context.sample_latents("erase", self.batch)
        x_t, t, _ = noise_latents(context, erase_latents)
        with torch.no_grad():
            label = context.predict(x_t, t, erase_latents.neutral_prompts)
        retain_latents = context.sample_latents("retain", self.retain_batch)
        x_r, t_r, target = noise_latents(context, retain_latents)
        loss = F.mse_loss(context.predict(x_t, t, erase_latents.prompts), label)
        loss = loss + self.retain_weight * F.mse_loss(context.predict(x_r, t_r, retain_latents.prompts), target)
        yield OptimizerStep("model", loss)

    def step_cost(self, step: int) -> Cost:
        update_passes = self.batch + self.retain_batch
        return Cost(unet_forwards=self.batch + update_passes, unet_backwards=update_passes, sample_gradients=update_passes)

    def prepare_cost(self, query: TeacherQuery) -> Cost:
        count = 2 * query.trajectories  # the size of a folder of images is only known once it is read
        return Cost(unet_forwards=count, unet_backwards=count)

    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {
        ("style", "pocket"): {**_POCKET, "lr": 1e-4, "prompts": pocket_prompts.STYLE, "anchor": "plain"},
        ("object", "pocket"): {**_POCKET, "lr": 1e-4, "prompts": pocket_prompts.OBJECT},
        ("person", "pocket"): {**_POCKET, "lr": 1e-4, "prompts": pocket_prompts.PERSON},
        # tuned on neon and boat; the values of pocket damage much more here
        ("style", "pocket-flow"): {**_POCKET, "lr": 2e-5, "steps": 100, "prompts": pocket_prompts.STYLE, "anchor": "plain"},
        ("object", "pocket-flow"): {**_POCKET, "lr": 7e-5, "prompts": pocket_prompts.OBJECT},
        ("person", "pocket-flow"): {**_POCKET, "lr": 7e-5, "prompts": pocket_prompts.PERSON},
        # nothing below was run on released weights; step counts and loss weights follow the paper
        **{("style", family): {**_SD, "prompts": prompt_templates.STYLE, "retain_weight": 0.5} for family in RELEASED_FAMILIES},
        **{("object", family): {**_SD, "prompts": prompt_templates.OBJECT, "retain_weight": 0.5} for family in RELEASED_FAMILIES},
        **{("person", family): {**_SD, "prompts": prompt_templates.PERSON, "retain_weight": 0.5} for family in RELEASED_FAMILIES},
        **{("nsfw", family): {**_SD, "prompts": prompt_templates.NSFW, "steps": 100} for family in RELEASED_FAMILIES},
    }


def noise_latents(context: TrainingContext, latents: LatentBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_t (B, C, h, w) for fresh uniform t and fresh noise, with t (B,) and what the model is trained to predict there."""
    noise = torch.randn(latents.x_0.shape).to(latents.x_0)
    t = context.model.random_times(len(noise))
    return context.model.add_noise(latents.x_0, noise, t), t, context.model.schedule.target(latents.x_0, noise)
