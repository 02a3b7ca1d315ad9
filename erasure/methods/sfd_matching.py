"""SFD-matching: train the multi-step UNet to forget what an SFD generator has forgotten (this project's extension of arXiv:2409.11219)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F

from erasure import prompt_templates
from erasure.concept import Concept, ConceptKind
from erasure.config.choices import Count, Region, Steps, Weight
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.cost import Cost
from erasure.methods.base import OptimizerStep, Trained, TrainingContext, exclude_concepts
from erasure.pocket import prompts as pocket_prompts
from erasure.training.teacher_cache import TeacherQuery

_POCKET = {
    "steps": 150,
    "batch": 8,
    "retain_batch": 16,
    "lr": 1e-4,
    "retain_prompts": pocket_prompts.RETAIN,
    "generated_images": 48,
    "retain_generated_images": 98,
}


@dataclass(frozen=True, kw_only=True)
class SFDMatching(Trained):
    """Noise matching on images of an SFD generator.

    A multi-step pipeline cannot use SFD's generator. Here the generator makes images from prompts with the concept; on these images the
    UNet learns to predict, given the concept, what the frozen UNet predicts without it.
    """

    paper: ClassVar[str] = "none; extends arXiv:2409.11219"
    changes: ClassVar[str] = "all of the UNet; choose other weights with --region"
    when: ClassVar[str] = "after sfd, when multi-step pipelines must forget the concept, too"

    generator: str = ""  # folder of an SFD edit, whose generator makes the training images
    region: Region = "full"  # which weights to train
    lr: float = 1e-5  # learning rate
    steps: Steps = 1000  # optimizer steps
    batch: Count = 4  # cached samples of the concept per step
    retain_batch: Count = 4  # cached samples of the retain prompts per step
    retain_weight: Weight = 1.0  # weight of the retain loss, beta in the equation
    retain_prompts: tuple[str, ...] = prompt_templates.RETAIN  # prompts to retain; those that name the concept are left out
    generated_images: Count = 100  # images per concept from the generator
    retain_generated_images: Count = 112  # images of the retain prompts from the generator, in all
    noise_levels: Count = 10  # noise levels per image at which the frozen UNet predicts noise

    def check_model(self, model: DiffusionModel) -> None:
        super().check_model(model)
        if model.schedule.predicts != "noise":
            raise UserError(
                f"sfd_matching learns from a generator of sfd, which does not serve {model.source}: it predicts the velocity of a flow; "
                "use esd or salun on it."
            )

    def query(self, concepts: list[Concept], seed: int) -> TeacherQuery:
        return TeacherQuery(
            prompt_pairs=tuple(pair for concept in concepts for pair in concept.prompt_pairs()),
            trajectories=self.generated_images * len(concepts),
            steps=self.noise_levels,
            guidance=0.0,
            seed=seed,
            retain_prompts=exclude_concepts(self.retain_prompts, concepts),
            retain_trajectories=self.retain_generated_images,
            generator=self.generator,
        )

    @property
    def samples_per_backward(self) -> int:
        return self.batch + self.retain_batch

    def step(self, context: TrainingContext) -> Iterator[OptimizerStep]:
        """MSE(eps(x_t, c_f), eps*(x_t, c_o)) + beta MSE(eps(x_t, c_r), eps*(x_t, c_r)), x_t noised from G(z, c)."""
        erase_rows, retain_rows = context.sample_rows("erase", self.batch), context.sample_rows("retain", self.retain_batch)
        loss = F.mse_loss(context.predict(erase_rows.x_t, erase_rows.t, erase_rows.prompts), erase_rows.pred_neutral)
        loss = loss + self.retain_weight * F.mse_loss(
            context.predict(retain_rows.x_t, retain_rows.t, retain_rows.prompts), retain_rows.pred_cond
        )
        yield OptimizerStep("model", loss)

    def step_cost(self, step: int) -> Cost:
        batch_size = self.batch + self.retain_batch
        return Cost(unet_forwards=batch_size, unet_backwards=batch_size, sample_gradients=batch_size)

    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {
        ("style", "pocket"): {**_POCKET, "prompts": pocket_prompts.STYLE, "anchor": "plain"},
        ("object", "pocket"): {**_POCKET, "prompts": pocket_prompts.OBJECT},
        ("person", "pocket"): {**_POCKET, "prompts": pocket_prompts.PERSON},
        # nothing below was run on real SD weights
        **{("style", family): {"prompts": prompt_templates.STYLE} for family in ("sd1", "sd2", "sdxl")},
        **{("object", family): {"prompts": prompt_templates.OBJECT} for family in ("sd1", "sd2", "sdxl")},
        **{("person", family): {"prompts": prompt_templates.PERSON} for family in ("sd1", "sd2", "sdxl")},
        **{("nsfw", family): {"prompts": prompt_templates.NSFW} for family in ("sd1", "sd2", "sdxl")},
    }
