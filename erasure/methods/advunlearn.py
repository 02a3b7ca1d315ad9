"""AdvUnlearn: train the text encoder against soft prompts that bring the concept back (Zhang et al., arXiv:2405.15234)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from erasure import prompt_templates as sentences
from erasure.concept import Concept, ConceptKind
from erasure.config.choices import Count, ScheduleSteps, Steps, StepsOrZero
from erasure.families.base import Cost, Region
from erasure.methods.base import OptimizerStep, Trained, TrainingContext, exclude_concepts
from erasure.pocket import prompts as pocket
from erasure.training.teacher_cache import TeacherBatch, TeacherQuery

_POCKET = {
    "steps": 140,
    "batch": 8,
    "retain_batch": 16,
    "attack_steps": 8,
    "attack_lr": 0.1,
    "attack_init": "latest",
    "tokens": 3,
    "warmup": 20,
    "retain_loss": "joint",
    "retain_weight": 2.0,
    "retain": pocket.RETAIN,
    "retain_walks": 98,
    "walks": 24,
    "walk_steps": 25,
}
_SD = {"retain_walks": 56, "attack_init": "random"}


@dataclass(frozen=True, kw_only=True)
class AdvUnlearn(Trained):
    """Adversarial unlearning.

    Walks and the frozen model's answers are recorded, so an iteration costs the attack steps and one more forward and backward of the
    student. The public code walks anew for every iteration and asks the teacher again in every attack step.
    """

    paper: ClassVar[str] = "arXiv:2405.15234"
    changes: ClassVar[str] = "the text encoder; UNet regions by --region"
    when: ClassVar[str] = "when people will attack the model with prompts; its text encoder drops into any pipeline of the family"

    region: Region = "text-encoder"  # which weights move
    lr: float = 1e-5  # learning rate
    steps: Steps = 1000  # iterations
    batch: Count = 1  # recorded rows to erase per iteration
    negative_guidance: float = 1.0  # eta of the erase loss, as in ESD
    attack_tokens: Count = 1  # soft tokens before the prompt that the attack may choose
    attack: Literal["pgd", "fast_at"] = "pgd"  # pgd: Adam steps; fast_at: steps along the sign of the gradient
    attack_steps: Steps = 30  # steps of the attack in every iteration
    attack_lr: float = 1e-3  # step size of the attack, in units of the input embeddings
    attack_init: Literal["random", "latest"] = "latest"  # where it starts: a random token, or where the last one ended
    warmup: StepsOrZero = 200  # iterations before the attack begins
    retain_prompts: tuple[str, ...] = sentences.RETAIN  # sentences to keep; those that name the concept are left out
    retain_loss: Literal["joint", "alternating"] = "alternating"  # one step on the sum, or a step on each
    retain_weight: float = 1.0  # gamma, the weight of the retain term; the paper takes 0.3 with joint steps
    retain_batch: Count = 5  # recorded rows to keep per iteration
    trajectories: Count = 20  # guided walks of the frozen model per concept
    retain_trajectories: Count = 56  # guided walks of what to keep
    trajectory_steps: ScheduleSteps = 50  # DDIM steps of a walk
    trajectory_guidance: float = 3.0  # classifier-free guidance of the walks

    def query(self, concepts: list[Concept], seed: int) -> TeacherQuery:
        return TeacherQuery(
            prompt_pairs=tuple(pair for concept in concepts for pair in concept.prompt_pairs()),
            trajectories=self.trajectories * len(concepts),
            steps=self.trajectory_steps,
            guidance=self.trajectory_guidance,
            seed=seed,
            retain_prompts=exclude_concepts(self.retain_prompts, concepts),
            retain_trajectories=self.retain_trajectories,
        )

    def step(self, context: TrainingContext) -> Iterator[OptimizerStep]:
        """min over T of L_e(T, delta*) + gamma L_r(T), with delta* = argmin MSE(eps(x_t, T([delta; c])), eps*(x_t, c)) (equation 4)."""
        erase_rows = context.sample_rows("erase", self.batch)
        attacking = int(context.state.setdefault("iteration", torch.zeros((), dtype=torch.long))) >= self.warmup
        prefix = self.find_adversarial_prefix(context, erase_rows) if attacking else None
        context.state["iteration"] = context.state["iteration"] + 1
        target = erase_rows.eps_neutral - self.negative_guidance * (erase_rows.eps_cond - erase_rows.eps_neutral)
        erase_loss = F.mse_loss(predict_with_prefix(context, erase_rows, prefix), target)
        if self.retain_loss == "alternating":
            yield OptimizerStep("model", erase_loss, self.batch)
        retain_rows = context.sample_rows("retain", self.retain_batch)
        retain_loss = self.retain_weight * F.mse_loss(predict_with_prefix(context, retain_rows), retain_rows.eps_cond)
        if self.retain_loss == "alternating":
            yield OptimizerStep("model", retain_loss, self.retain_batch)
        else:
            yield OptimizerStep("model", erase_loss + retain_loss, self.batch + self.retain_batch)

    def find_adversarial_prefix(self, context: TrainingContext, rows: TeacherBatch) -> Tensor:
        """Soft tokens (B, k, E), one set a row, that make the student say what the frozen model says about the concept."""
        embeddings = context.model.token_embeddings()
        delta = embeddings[torch.randint(len(embeddings), (self.batch, self.attack_tokens)).to(embeddings.device)]
        if self.attack_init == "latest" and "delta" in context.state:
            delta = context.state["delta"]
        delta = delta.clone().requires_grad_(True)
        adam = torch.optim.Adam([delta], lr=self.attack_lr)
        for _ in range(self.attack_steps):
            loss = F.mse_loss(predict_with_prefix(context, rows, delta), rows.eps_cond)
            delta.grad = context.input_gradient(loss, delta)
            if self.attack == "pgd":
                adam.step()
            else:
                delta.data -= self.attack_lr * delta.grad.sign()
        context.state["delta"] = delta.detach()
        return delta.detach()

    def step_cost(self, step: int) -> Cost:
        attack_passes = self.attack_steps * self.batch if step >= self.warmup else 0
        update_passes = self.batch + self.retain_batch
        return Cost(
            unet_forwards=attack_passes + update_passes,
            unet_backwards=attack_passes + update_passes,
            text_forwards=attack_passes + update_passes,
            sample_gradients=update_passes,
        )

    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {
        ("style", "pocket"): {**_POCKET, "lr": 2e-4, "retain_weight": 3.0, "retain_batch": 24, "prompts": pocket.STYLE},
        ("object", "pocket"): {**_POCKET, "lr": 4e-4, "prompts": pocket.OBJECT},
        ("person", "pocket"): {**_POCKET, "lr": 4e-4, "prompts": pocket.PERSON},
        # nothing below was run on real SD weights; joint steps at 0.3 are the paper's for nudity
        **{("style", family): {**_SD} for family in ("sd1", "sd2")},
        **{("object", family): {**_SD} for family in ("sd1", "sd2")},
        **{("person", family): {**_SD} for family in ("sd1", "sd2")},
        **{("nsfw", family): {**_SD, "retain_loss": "joint", "retain_weight": 0.3} for family in ("sd1", "sd2")},
    }


def predict_with_prefix(context: TrainingContext, rows: TeacherBatch, prefix: Tensor | None = None) -> Tensor:
    """The student's prediction, with soft tokens before the prompts."""
    return context.model.predict(rows.x_t, rows.t, context.model.encode(rows.prompts, prefix))
