"""SFD: distill a one-step generator that makes safe images from the concept's prompts (Chen et al., arXiv:2409.11219)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from erasure import prompt_templates
from erasure.concept import Concept, ConceptKind
from erasure.config.choices import Count, PositiveWeight, ScheduleSteps, Steps, StepsOrZero, Weight
from erasure.methods.base import OptimizerStep, Trained, TrainingContext, exclude_concepts
from erasure.pocket import prompts as pocket_prompts
from erasure.training.one_step import FAKE, GENERATOR, Distillation, OneStepMethod
from erasure.training.teacher_cache import TeacherQuery

_POCKET = {
    "steps": 250,
    "batch": 8,
    "lr": 1e-4,
    "fake_lr": 3e-4,
    "rank": 30,
    "guidance": 2.0,
    "retain_prompts": pocket_prompts.RETAIN,
    "distill_regression_steps": 400,
    "distill_steps": 800,
    "distill_trajectories": 720,
    "trajectory_guidance": 4.0,
}


@dataclass(frozen=True, kw_only=True)
class SFD(OneStepMethod):
    """Score forgetting distillation.

    In half of every batch, which is to be retained, generator, fake score and teacher get the same prompt. In the other half, generator and
    fake score get the concept and the teacher gets the prompt without it. The public code holds three networks in fp16; here one frozen
    network carries two adapter sets with fp32 masters. Before it forgets, the generator is distilled once from the same base
    (erasure.training.one_step); all erasures of that base share it through the cache.
    """

    paper: ClassVar[str] = "arXiv:2409.11219"
    changes: ClassVar[str] = "a one-step generator, as an adapter of the UNet"
    when: ClassVar[str] = "when images must also be generated fast; it replaces the sampler and has no effect on multi-step pipelines"

    lr: float = 1e-6  # learning rate of the generator
    steps: Steps = 12500  # iterations, each with one optimizer step of the fake score and one of the generator
    batch: Count = 8  # prompts per iteration, half of them with the concept
    retain_weight: Weight = 1.0  # weight of the retained half, the paper's a_r and b_r
    erase_weight: PositiveWeight = 1.0  # weight of the erased half, the paper's a_f and b_f
    override: bool = False  # train the fake score on the prompts without the concept, too
    retain_prompts: tuple[str, ...] = prompt_templates.RETAIN  # prompts to retain; those that name the concept are left out
    distill_regression_steps: StepsOrZero = 2000  # distillation: regression steps, before those of SiD
    distill_steps: Steps = 20000  # distillation: iterations in all
    distill_trajectories: Count = 2000  # distillation: cached trajectories for the regression
    distill_lr: float = 1e-4  # distillation: learning rate of the generator with the SiD loss
    trajectory_steps: ScheduleSteps = 25  # DDIM steps per trajectory
    trajectory_guidance: float = 4.5  # classifier-free guidance of the trajectories

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
        """Return the distillation of the generator before it forgets anything; it does not depend on the concept."""
        shared = {
            name: getattr(self, name)
            for name in ("region", "rank", "init_timestep", "sid_weight", "guidance", "min_timestep", "max_timestep", "fake_lr", "batch")
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
        yield OptimizerStep(FAKE, (weight * fake_loss).mean())
        x_g = self.sample_generator(context, prompts)
        yield OptimizerStep(GENERATOR, (weight * self.generator_loss(context, x_g, prompts, teacher_prompts)).mean())

    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {
        ("style", "pocket"): {**_POCKET, "prompts": pocket_prompts.STYLE, "anchor": "plain"},
        ("object", "pocket"): {**_POCKET, "prompts": pocket_prompts.OBJECT},
        ("person", "pocket"): {**_POCKET, "prompts": pocket_prompts.PERSON},
        # nothing below was run on released weights
        **{("style", family): {"prompts": prompt_templates.STYLE} for family in ("sd1", "sd2", "sdxl")},
        **{("object", family): {"prompts": prompt_templates.OBJECT} for family in ("sd1", "sd2", "sdxl")},
        **{("person", family): {"prompts": prompt_templates.PERSON} for family in ("sd1", "sd2", "sdxl")},
        **{("nsfw", family): {"prompts": prompt_templates.NSFW} for family in ("sd1", "sd2", "sdxl")},
    }
