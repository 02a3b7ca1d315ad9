"""SFD: distil a one-step generator that draws something safe where the concept is asked for (Chen et al., arXiv:2409.11219)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from erasure import prompt_templates as sentences
from erasure.concept import Concept, Kind
from erasure.config.choices import Count, MaybeSteps, ScheduleSteps, Steps
from erasure.methods.base import Play, Trained, Update, spared
from erasure.pocket import sentences as pocket
from erasure.training.one_step import FAKE, GENERATOR, Distillation, OneStep
from erasure.training.teacher_cache import Recording

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
class SFD(OneStep):
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
    forget_weight: float = 1.0  # a_f and b_f
    override: bool = False  # ask the fake score, in its own training, for the sentence without the concept too
    retain: tuple[str, ...] = sentences.RETAIN  # sentences to keep; those that name the concept are left out
    distil_regression: MaybeSteps = 2000  # distillation: steps of regression
    distil_steps: Steps = 20000  # distillation: steps in all
    distil_walks: Count = 2000  # distillation: recorded walks
    distil_lr: float = 1e-4  # distillation: learning rate of the generator in its SiD part
    walk_steps: ScheduleSteps = 25  # DDIM steps of a walk
    walk_guidance: float = 4.5  # classifier-free guidance of the walks

    def record(self, concepts: list[Concept], seed: int) -> Recording:
        return Recording(
            pairs=tuple(pair for concept in concepts for pair in concept.sentences()),
            walks=0,
            steps=self.walk_steps,
            guidance=self.walk_guidance,
            seed=seed,
            retain=spared(self.retain, concepts),
            keep="nothing",
        )

    def before(self) -> Trained:
        """The generator that has not forgotten anything yet; it does not depend on the concept."""
        shared = {
            name: getattr(self, name) for name in ("region", "rank", "start", "alpha", "guidance", "t_min", "t_max", "lr_fake", "batch")
        }
        return Distillation(
            **shared,
            lr=self.distil_lr,
            steps=self.distil_steps,
            sentences=self.retain,
            regression=self.distil_regression,
            walks=self.distil_walks,
            walk_steps=self.walk_steps,
            walk_guidance=self.walk_guidance,
        )

    def step(self, play: Play) -> Iterator[Update]:
        """a_r l_psi(c_r) + a_f l_psi(c_f), then b_r l(c_r, c_r) + b_f l(c_f, teacher: without)."""
        half = self.batch // 2
        keep, forget = play.sentences("retain", self.batch - half), play.sentences("erase", half)
        prompts = [with_ for with_, _ in keep + forget]
        safe = [with_ for with_, _ in keep] + [without for _, without in forget]
        weight = torch.tensor([self.retain_weight] * len(keep) + [self.forget_weight] * half).to(play.model.device)
        with torch.no_grad():
            x_g = self.generated(play, prompts)
        fake = self.fake_loss(play, x_g, safe if self.override else prompts)
        yield Update(FAKE, (weight * fake).mean(), 2 * self.batch)
        x_g = self.generated(play, prompts)
        yield Update(GENERATOR, (weight * self.generator_loss(play, x_g, prompts, safe)).mean(), 5 * self.batch)

    recipes: ClassVar[dict[tuple[Kind, str], dict[str, Any]]] = {
        ("style", "pocket"): {**_POCKET, "prompts": pocket.STYLE, "anchor": "plain"},
        ("object", "pocket"): {**_POCKET, "prompts": pocket.OBJECT},
        ("person", "pocket"): {**_POCKET, "prompts": pocket.PERSON},
        # nothing below was run on real SD weights
        **{("style", family): {"prompts": sentences.STYLE} for family in ("sd1", "sd2")},
        **{("object", family): {"prompts": sentences.OBJECT} for family in ("sd1", "sd2")},
        **{("person", family): {"prompts": sentences.PERSON} for family in ("sd1", "sd2")},
        **{("nsfw", family): {"prompts": sentences.NSFW} for family in ("sd1", "sd2")},
    }
