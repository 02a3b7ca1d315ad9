"""SFD-matching: teach the multi-step UNet what an SFD generator has forgotten (this project's extension of arXiv:2409.11219)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F

from erasure import prompt_templates as sentences
from erasure.concept import Concept, ConceptKind
from erasure.config.choices import Count, Steps
from erasure.families.base import Cost, Region
from erasure.methods.base import OptimizerStep, Trained, TrainingContext, exclude_concepts
from erasure.pocket import prompts as pocket
from erasure.training.teacher_cache import TeacherQuery

_POCKET = {"steps": 150, "batch": 8, "retain_batch": 16, "lr": 1e-4, "retain": pocket.RETAIN, "draws": 48, "retain_draws": 98}


@dataclass(frozen=True, kw_only=True)
class SFDMatching(Trained):
    """Noise matching under the override.

    SFD's product cannot be used by a multi-step pipeline. Here its generator draws, asked for the concept; the UNet learns to say about
    these pictures, asked for the concept, what the frozen UNet says without it.
    """

    paper: ClassVar[str] = "none; extends arXiv:2409.11219"
    changes: ClassVar[str] = "all of the UNet; other regions by --region"
    when: ClassVar[str] = "after sfd, when multi-step pipelines should forget as well"

    generator: str = ""  # folder of the SFD edit
    region: Region = "full"  # which weights move
    lr: float = 1e-5  # learning rate
    steps: Steps = 1000  # optimiser steps
    batch: Count = 4  # rows of the concept per step
    retain_batch: Count = 4  # rows of what to keep per step
    retain_weight: float = 1.0  # beta, the weight of the retain term
    retain_prompts: tuple[str, ...] = sentences.RETAIN  # sentences to keep; those that name the concept are left out
    generated_images: Count = 100  # pictures of the concept that the generator draws
    retain_generated_images: Count = 112  # pictures of what to keep
    noise_levels: Count = 10  # noise levels at which the frozen UNet is asked about each

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

    def step(self, context: TrainingContext) -> Iterator[OptimizerStep]:
        """MSE(eps(x_t, c_f), eps*(x_t, c_o)) + beta MSE(eps(x_t, c_r), eps*(x_t, c_r)), x_t noised from G(z, c)."""
        erase_rows, retain_rows = context.sample_rows("erase", self.batch), context.sample_rows("retain", self.retain_batch)
        loss = F.mse_loss(context.predict(erase_rows.x_t, erase_rows.t, erase_rows.prompts), erase_rows.eps_neutral)
        loss = loss + self.retain_weight * F.mse_loss(
            context.predict(retain_rows.x_t, retain_rows.t, retain_rows.prompts), retain_rows.eps_cond
        )
        yield OptimizerStep("model", loss, self.batch + self.retain_batch)

    def step_cost(self, step: int) -> Cost:
        batch_size = self.batch + self.retain_batch
        return Cost(unet_forwards=batch_size, unet_backwards=batch_size, sample_gradients=batch_size)

    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {
        ("style", "pocket"): {**_POCKET, "prompts": pocket.STYLE, "anchor": "plain"},
        ("object", "pocket"): {**_POCKET, "prompts": pocket.OBJECT},
        ("person", "pocket"): {**_POCKET, "prompts": pocket.PERSON},
        # nothing below was run on real SD weights
        **{("style", family): {"prompts": sentences.STYLE} for family in ("sd1", "sd2")},
        **{("object", family): {"prompts": sentences.OBJECT} for family in ("sd1", "sd2")},
        **{("person", family): {"prompts": sentences.PERSON} for family in ("sd1", "sd2")},
        **{("nsfw", family): {"prompts": sentences.NSFW} for family in ("sd1", "sd2")},
    }
