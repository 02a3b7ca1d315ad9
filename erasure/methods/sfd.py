"""SFD: distil a one-step generator that draws something safe where the concept is asked for (Chen et al., arXiv:2409.11219)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from erasure import prompt_templates as sentences
from erasure.concept import Concept, ConceptKind
from erasure.config.choices import Count, ScheduleSteps, Steps, StepsOrZero
from erasure.methods.base import OptimizerStep, Trained, TrainingContext, exclude_concepts
from erasure.pocket import prompts as pocket
from erasure.training.one_step import FAKE, GENERATOR, Distillation, OneStepMethod
from erasure.training.teacher_cache import TeacherQuery

_POCKET = {
    "steps": 250,
    "batch": 8,
    "lr": 1e-4,
    "lr_fake": 3e-4,
    "rank": 30,
    "guidance": 2.0,
    "retain": pocket.RETAIN,
    "distil_regression": 400,
    "distil_steps": 800,
    "distil_walks": 720,
    "walk_guidance": 4.0,
}


@dataclass(frozen=True, kw_only=True)
class SFD(OneStepMethod):
    """Score forgetting distillation.

    Half of every batch is to be kept: generator, fake score and teacher are asked for the same sentence. The other half asks generator and
    fake score for the concept and the teacher for the sentence without it. Where the public code keeps three networks in fp16, here one
    frozen network carries two adapter sets with fp32 masters. Before it forgets, the generator is distilled once from the same base
    (erasure.training.one_step), which all erasures of that base share through the cache.
    """

    paper: ClassVar[str] = "arXiv:2409.11219"
    changes: ClassVar[str] = "a one-step generator, as an adapter of the UNet"
    when: ClassVar[str] = "when pictures must be fast as well; it replaces the sampler, and no multi-step pipeline uses it"

    lr: float = 1e-6  # learning rate of the generator
    steps: Steps = 12500  # optimiser steps of each of the two
    batch: Count = 8  # sentences per step, half of them to forget
    retain_weight: float = 1.0  # a_r and b_r
    erase_weight: float = 1.0  # a_f and b_f
    override: bool = False  # ask the fake score, in its own training, for the sentence without the concept too
    retain_prompts: tuple[str, ...] = sentences.RETAIN  # sentences to keep; those that name the concept are left out
    distill_regression_steps: StepsOrZero = 2000  # distillation: steps of regression
    distill_steps: Steps = 20000  # distillation: steps in all
    distill_trajectories: Count = 2000  # distillation: recorded walks
    distill_lr: float = 1e-4  # distillation: learning rate of the generator in its SiD part
    trajectory_steps: ScheduleSteps = 25  # DDIM steps of a walk
    trajectory_guidance: float = 4.5  # classifier-free guidance of the walks

    def query(self, concepts: list[Concept], seed: int) -> TeacherQuery:
        return TeacherQuery(
            prompt_pairs=tuple(pair for concept in concepts for pair in concept.prompt_pairs()),
            trajectories=0,
            steps=self.trajectory_steps,
            guidance=self.trajectory_guidance,
            seed=seed,
            retain_prompts=exclude_concepts(self.retain_prompts, concepts),
            store="nothing",
        )

    def pretraining(self) -> Trained:
        """The generator that has not forgotten anything yet; it does not depend on the concept."""
        shared = {
            name: getattr(self, name) for name in ("region", "rank", "start", "alpha", "guidance", "t_min", "t_max", "lr_fake", "batch")
        }
        return Distillation(
            **shared,
            lr=self.distill_lr,
            steps=self.distill_steps,
            prompts=self.retain_prompts,
            regression_steps=self.distill_regression_steps,
            trajectories=self.distill_trajectories,
            trajectory_steps=self.trajectory_steps,
            trajectory_guidance=self.trajectory_guidance,
        )

    def step(self, context: TrainingContext) -> Iterator[OptimizerStep]:
        """a_r l_psi(c_r) + a_f l_psi(c_f), then b_r l(c_r, c_r) + b_f l(c_f, teacher: without)."""
        half = self.batch // 2
        retain_pairs, erase_pairs = context.sample_prompts("retain", self.batch - half), context.sample_prompts("erase", half)
        prompts = [concept_prompt for concept_prompt, _ in retain_pairs + erase_pairs]
        teacher_prompts = [concept_prompt for concept_prompt, _ in retain_pairs] + [neutral_prompt for _, neutral_prompt in erase_pairs]
        weight = torch.tensor([self.retain_weight] * len(retain_pairs) + [self.erase_weight] * half).to(context.model.device)
        with torch.no_grad():
            x_g = self.sample_generator(context, prompts)
        fake_loss = self.fake_loss(context, x_g, teacher_prompts if self.override else prompts)
        yield OptimizerStep(FAKE, (weight * fake_loss).mean(), 2 * self.batch)
        x_g = self.sample_generator(context, prompts)
        yield OptimizerStep(GENERATOR, (weight * self.generator_loss(context, x_g, prompts, teacher_prompts)).mean(), 5 * self.batch)

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
