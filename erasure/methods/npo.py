"""NPO: raise the noise error of the concept until the model no longer prefers it (Zhang et al., arXiv:2404.05868, on diffusion models)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from erasure import prompt_templates
from erasure.concept import Concept, ConceptKind
from erasure.config.choices import Count, Region, ScheduleSteps, Steps, Weight
from erasure.errors import UserError
from erasure.families.cost import Cost
from erasure.methods.base import OptimizerStep, Trained, TrainingContext, exclude_concepts
from erasure.pocket import prompts as pocket_prompts
from erasure.training.teacher_cache import TeacherBatch, TeacherQuery

_POCKET = {
    "lr": 2e-4,
    "steps": 150,
    "batch": 8,
    "retain_batch": 8,
    "trajectories": 24,
    "retain_trajectories": 98,
    "trajectory_steps": 25,
    "retain_prompts": pocket_prompts.RETAIN,
}


@dataclass(frozen=True, kw_only=True)
class NPO(Trained):
    """Negative preference optimization.

    The paper's log-likelihood ratio is, on a diffusion model, how much the noise error grew, as in Diffusion-DPO (arXiv:2311.12908). The
    noise and the frozen model's error follow from recorded trajectories, so a second network is not needed.

    Raises:
        UserError: beta is not positive, or the retain weight is negative.
    """

    paper: ClassVar[str] = "arXiv:2404.05868"
    changes: ClassVar[str] = "cross-attention, or the text side of joint attention; choose other weights with --region"
    when: ClassVar[str] = "when a training should level off by itself; what the concept becomes is left open, so look at the images"

    beta: float = 500.0  # how soon the loss levels off, in units of 1 / mean squared error; small values go on and blacken the images
    region: Region = "xattn"  # which weights to train
    lr: float = 1e-5  # learning rate
    steps: Steps = 1000  # optimizer steps
    batch: Count = 4  # cached trajectory points of the concept per step
    retain_batch: Count = 4  # cached trajectory points of what to retain per step
    retain_weight: Weight = 1.0  # weight of the retain loss
    retain_prompts: tuple[str, ...] = prompt_templates.RETAIN  # prompts to retain; those that name the concept are left out
    trajectories: Count = 20  # guided trajectories of the frozen model per concept
    retain_trajectories: Count = 100  # guided trajectories of the retain prompts, in all
    trajectory_steps: ScheduleSteps = 50  # DDIM steps per trajectory
    trajectory_guidance: float = 3.0  # classifier-free guidance of the trajectories

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise UserError(f"--beta must be positive, got {self.beta:g}.")
        if self.retain_weight < 0:
            raise UserError(f"--retain-weight must not be negative, got {self.retain_weight:g}.")

    @property
    def samples_per_backward(self) -> int:
        return self.batch + self.retain_batch

    def query(self, concepts: list[Concept], seed: int) -> TeacherQuery:
        return TeacherQuery(
            prompt_pairs=tuple((prompt, "") for concept in concepts for prompt, _ in concept.prompt_pairs()),
            trajectories=self.trajectories * len(concepts),
            steps=self.trajectory_steps,
            guidance=self.trajectory_guidance,
            seed=seed,
            retain_prompts=exclude_concepts(self.retain_prompts, concepts),
            retain_trajectories=self.retain_trajectories,
        )

    def step(self, context: TrainingContext) -> Iterator[OptimizerStep]:
        erase, retain = context.sample_rows("erase", self.batch), context.sample_rows("retain", self.retain_batch)
        kept = F.mse_loss(context.predict(retain.x_t, retain.t, retain.prompts), retain.pred_cond)
        yield OptimizerStep("model", self.loss(context, erase) + self.retain_weight * kept)

    def loss(self, context: TrainingContext, rows: TeacherBatch) -> Tensor:
        """Return -(2 / beta) log sigma(beta (l - l*)), averaged (scalar): l is the error of a row's noise, l* the frozen model's."""
        schedule = context.model.schedule
        target = schedule.target(rows.x_0, schedule.infer_noise(rows.x_0, rows.x_t, rows.t))
        error, frozen_error = (
            (prediction - target).square().flatten(1).mean(1)
            for prediction in (context.predict(rows.x_t, rows.t, rows.prompts), rows.pred_cond)
        )
        return -2 / self.beta * F.logsigmoid(self.beta * (error - frozen_error)).mean()

    def step_cost(self, step: int) -> Cost:
        passes = self.batch + self.retain_batch
        return Cost(unet_forwards=passes, unet_backwards=passes, sample_gradients=passes)

    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {
        ("style", "pocket"): {**_POCKET, "prompts": pocket_prompts.STYLE},
        ("object", "pocket"): {**_POCKET, "prompts": pocket_prompts.OBJECT},
        ("person", "pocket"): {**_POCKET, "prompts": pocket_prompts.PERSON},
    }
