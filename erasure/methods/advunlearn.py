"""AdvUnlearn: train the text encoder against soft prompts that bring the concept back (Zhang et al., arXiv:2405.15234)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from erasure import prompt_templates
from erasure.concept import Concept, ConceptKind
from erasure.config.choices import Count, Region, ScheduleSteps, Steps, StepsOrZero, Weight
from erasure.families.cost import Cost
from erasure.families.pipelines import RELEASED_FAMILIES
from erasure.loading.model_source import SHIPPED_MODELS
from erasure.methods.base import OptimizerStep, Trained, TrainingContext, exclude_concepts
from erasure.pocket import prompts as pocket_prompts
from erasure.training.teacher_cache import TeacherBatch, TeacherQuery

_POCKET = {
    "steps": 140,
    "batch": 8,
    "retain_batch": 16,
    "attack_steps": 8,
    "attack_lr": 0.1,
    "attack_init": "latest",
    "attack_tokens": 3,
    "warmup": 20,
    "retain_loss": "joint",
    "retain_weight": 2.0,
    "retain_prompts": pocket_prompts.RETAIN,
    "retain_trajectories": 98,
    "trajectories": 24,
    "trajectory_steps": 25,
}
_SD = {"retain_trajectories": 56, "attack_init": "random"}


@dataclass(frozen=True, kw_only=True)
class AdvUnlearn(Trained):
    """Adversarial unlearning.

    Trajectories and predictions of the frozen model are cached, so an iteration costs the attack steps and one more forward and backward
    pass of the student. The public code computes a new trajectory in every iteration and runs the teacher again in every attack step.
    """

    paper: ClassVar[str] = "arXiv:2405.15234"
    repeatable: ClassVar[bool] = False  # the attack goes on from where the last iteration left it
    changes: ClassVar[str] = "the text encoder; choose weights of the denoiser with --region"
    when: ClassVar[str] = "when people will attack the model with prompts; the new text encoder works in any pipeline of the family"

    region: Region = "text-encoder"  # which weights to train
    lr: float = 1e-5  # learning rate
    steps: Steps = 1000  # iterations
    batch: Count = 1  # cached points of the concept per iteration
    negative_guidance: float = 1.0  # how far to push past the prediction without the concept, eta as in ESD
    attack_tokens: Count = 1  # soft tokens that the attack puts before the prompt
    attack: Literal["pgd", "fast_at"] = "pgd"  # attack algorithm: pgd (Adam), or fast_at (along the sign of the gradient)
    attack_steps: Steps = 30  # attack steps per iteration
    attack_lr: float = 1e-3  # step size of the attack, in the scale of the input embeddings
    attack_init: Literal["random", "latest"] = "latest"  # where an attack starts: at a random token, or where the latest attack ended
    warmup: StepsOrZero = 200  # iterations before the attacks begin
    retain_prompts: tuple[str, ...] = prompt_templates.RETAIN  # prompts to retain; those that name the concept are left out
    retain_loss: Literal["joint", "alternating"] = "alternating"  # one optimizer step on the sum of both losses, or one on each in turn
    retain_weight: Weight = 1.0  # weight of the retain loss, the paper's gamma (0.3 there with joint steps)
    retain_batch: Count = 5  # cached points of the retain prompts per iteration
    trajectories: Count = 20  # guided trajectories of the frozen model per concept
    retain_trajectories: Count = 56  # guided trajectories of the retain prompts, in all
    trajectory_steps: ScheduleSteps = 50  # DDIM steps per trajectory
    trajectory_guidance: float = 3.0  # classifier-free guidance of the trajectories

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

    @property
    def samples_per_backward(self) -> int:
        return self.batch + self.retain_batch if self.retain_loss == "joint" else max(self.batch, self.retain_batch)

    def step(self, context: TrainingContext) -> Iterator[OptimizerStep]:
        """Minimize over T: L_e(T, delta*) + gamma L_r(T), with delta* = argmin MSE(eps(x_t, T([delta; c])), eps*(x_t, c)) (equation 4)."""
        erase_rows = context.sample_rows("erase", self.batch)
        attacking = int(context.state.setdefault("iteration", torch.zeros((), dtype=torch.long))) >= self.warmup
        prefix = self.find_adversarial_prefix(context, erase_rows) if attacking else None
        context.state["iteration"] = context.state["iteration"] + 1
        target = erase_rows.pred_neutral - self.negative_guidance * (erase_rows.pred_cond - erase_rows.pred_neutral)
        erase_loss = F.mse_loss(predict_with_prefix(context, erase_rows, prefix), target)
        if self.retain_loss == "alternating":
            yield OptimizerStep("model", erase_loss)
        retain_rows = context.sample_rows("retain", self.retain_batch)
        retain_loss = self.retain_weight * F.mse_loss(predict_with_prefix(context, retain_rows), retain_rows.pred_cond)
        if self.retain_loss == "alternating":
            yield OptimizerStep("model", retain_loss)
        else:
            yield OptimizerStep("model", erase_loss + retain_loss)

    def find_adversarial_prefix(self, context: TrainingContext, rows: TeacherBatch) -> Tensor:
        """Return soft tokens (B, k, E), one set per row, that make the student predict what the frozen model predicts for the concept."""
        embeddings = context.model.token_embeddings()
        delta = embeddings[torch.randint(len(embeddings), (self.batch, self.attack_tokens)).to(embeddings.device)]
        if self.attack_init == "latest" and "delta" in context.state:
            delta = context.state["delta"]
        delta = delta.clone().requires_grad_(True)
        adam = torch.optim.Adam([delta], lr=self.attack_lr)
        for _ in range(self.attack_steps):
            loss = F.mse_loss(predict_with_prefix(context, rows, delta), rows.pred_cond)
            delta.grad = torch.autograd.grad(loss, delta)[0]
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
        **{
            ("style", family): {**_POCKET, "lr": 2e-4, "retain_weight": 3.0, "retain_batch": 24, "prompts": pocket_prompts.STYLE}
            for family in SHIPPED_MODELS
        },
        **{("object", family): {**_POCKET, "lr": 4e-4, "prompts": pocket_prompts.OBJECT} for family in SHIPPED_MODELS},
        **{("person", family): {**_POCKET, "lr": 4e-4, "prompts": pocket_prompts.PERSON} for family in SHIPPED_MODELS},
        # nothing below was run on released weights; joint steps at 0.3 are the paper's choice for nudity
        **{("style", family): {**_SD} for family in RELEASED_FAMILIES},
        **{("object", family): {**_SD} for family in RELEASED_FAMILIES},
        **{("person", family): {**_SD} for family in RELEASED_FAMILIES},
        **{("nsfw", family): {**_SD, "retain_loss": "joint", "retain_weight": 0.3} for family in RELEASED_FAMILIES},
        # its text encoder is a language model, which stays as it is: the projection of its states trains instead
        **{(kind, "flux2-klein"): {**_SD, "region": "text-proj"} for kind in ("style", "object", "person")},
        ("nsfw", "flux2-klein"): {**_SD, "region": "text-proj", "retain_loss": "joint", "retain_weight": 0.3},
    }


def predict_with_prefix(context: TrainingContext, rows: TeacherBatch, prefix: Tensor | None = None) -> Tensor:
    """Return the student's predicted noise (B, C, h, w), with soft tokens (B, k, E) before the prompts."""
    return context.model.predict(rows.x_t, rows.t, context.model.encode(rows.prompts, prefix))
