"""DoCo: make what the concept's prompts give look like what its anchor's prompts give, to a critic (Wu et al., arXiv:2405.15304)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erasure import prompt_templates
from erasure.concept import Concept, ConceptKind
from erasure.config.choices import Count, Region, ScheduleSteps, Steps, StepsOrZero, Weight
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.cost import Cost
from erasure.methods.base import OptimizerStep, TrainableGroup, Trained, TrainingContext, exclude_concepts, unfreeze
from erasure.pocket import prompts as pocket_prompts
from erasure.training.data_parallel import average_tensors
from erasure.training.teacher_cache import TeacherBatch, TeacherQuery

_POCKET = {
    "lr": 1e-4,
    "critic_lr": 5e-4,
    "steps": 500,
    "warmup": 100,
    "batch": 8,
    "retain_batch": 8,
    "trajectories": 24,
    "retain_trajectories": 98,
    "trajectory_steps": 25,
    "retain_prompts": pocket_prompts.RETAIN,
}
CRITIC = "critic"
WIDTH, MAX_LAYERS = 64, 4  # of the critic: channels of its first layer, which double from layer to layer


@dataclass(frozen=True, kw_only=True)
class DoCo(Trained):
    """Domain correction with a gradient that preserves the rest.

    A critic D learns to tell apart two x_0 at the same x_t: the one that the frozen model predicts for the anchor's prompts, and the
    one that the trained model predicts for the concept's prompts. The trained model minimizes BCE(D(x_0), anchor). Where its gradient
    g_a works against the gradient g_r of the retain loss, that part is taken out, tensor by tensor: g_a - (<g_a, g_r> / |g_r|^2) g_r.

    The released code takes out another length, <g_a, g_r> / (|g_a| |g_r|^2) g_r, so that the two stay opposed. It keeps a second
    network for the frozen predictions; here they come from recorded trajectories of the anchor's prompts. The critic has group norm
    instead of batch norm, whose running statistics would make resumed runs differ.

    Raises:
        UserError: The critic's learning rate is not positive, or the warm-up is as long as the training.
    """

    paper: ClassVar[str] = "arXiv:2405.15304"
    changes: ClassVar[str] = "the keys and values of cross-attention, or the text side of joint attention"
    when: ClassVar[str] = "when the concept should become its anchor in every respect; a critic has to be trained beside it"
    repeatable: ClassVar[bool] = False  # the critic moves on in every iteration

    region: Region = "xattn-kv"  # which weights to train
    lr: float = 5e-5  # learning rate
    critic_lr: float = 5e-4  # learning rate of the critic
    steps: Steps = 2000  # iterations, each with one step of the critic
    warmup: StepsOrZero = 1000  # first iterations, in which only the critic learns
    batch: Count = 8  # recorded points of the anchor's trajectories per step
    retain_batch: Count = 8  # recorded points of what to retain per step
    retain_weight: Weight = 0.0  # weight of the retain loss beside its part in the correction, as in the released code
    retain_prompts: tuple[str, ...] = prompt_templates.RETAIN  # prompts to retain; those that name the concept are left out
    trajectories: Count = 100  # guided trajectories of the anchor's prompts per concept
    retain_trajectories: Count = 100  # guided trajectories of the retain prompts, in all
    trajectory_steps: ScheduleSteps = 25  # DDIM steps per trajectory
    trajectory_guidance: float = 6.0  # classifier-free guidance of the trajectories

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.critic_lr > 0:
            raise UserError(f"--critic-lr must be positive, got {self.critic_lr:g}.")
        if self.warmup >= self.steps:
            raise UserError(f"--warmup {self.warmup} leaves none of {self.steps} --steps for the model; lower it.")

    @property
    def samples_per_backward(self) -> int:
        return self.batch + self.retain_batch

    def query(self, concepts: list[Concept], seed: int) -> TeacherQuery:
        """Return the query whose prompts are the anchor's; the second of each pair is the prompt with the concept."""
        return TeacherQuery(
            prompt_pairs=tuple((anchor, prompt) for concept in concepts for prompt, anchor in concept.prompt_pairs()),
            trajectories=self.trajectories * len(concepts),
            steps=self.trajectory_steps,
            guidance=self.trajectory_guidance,
            seed=seed,
            retain_prompts=exclude_concepts(self.retain_prompts, concepts),
            retain_trajectories=self.retain_trajectories,
        )

    @contextmanager
    def trainable(self, model: DiffusionModel) -> Iterator[dict[str, TrainableGroup]]:
        with unfreeze(model, model.parameter_names(self.region)) as parameters:
            critic = {name: nn.Parameter(value.to(model.device)) for name, value in initial_critic(model.latent_shape).items()}
            yield {"model": TrainableGroup(parameters, self.lr), CRITIC: TrainableGroup(critic, self.critic_lr, saved=False)}

    def step(self, context: TrainingContext) -> Iterator[OptimizerStep]:
        iteration = int(context.state.setdefault("iteration", torch.zeros((), dtype=torch.long)))
        context.state["iteration"] = context.state["iteration"] + 1
        critic, rows = context.groups[CRITIC].parameters, context.sample_rows("erase", self.batch)
        with torch.set_grad_enabled(iteration >= self.warmup):
            shown = self.estimate(context, rows)
        anchor = context.model.estimate_x0(rows.x_t, rows.pred_cond, rows.t)
        yield OptimizerStep(CRITIC, critic_loss(critic, anchor, 0.0) + critic_loss(critic, shown.detach(), 1.0))
        if iteration >= self.warmup:
            retain = context.sample_rows("retain", self.retain_batch)
            kept = F.mse_loss(context.predict(retain.x_t, retain.t, retain.prompts), retain.pred_cond)
            yield OptimizerStep("model", self.corrected_loss(context, critic_loss(critic, shown, 0.0), kept))

    def estimate(self, context: TrainingContext, rows: TeacherBatch) -> Tensor:
        """Return the x_0 (B, C, h, w) that the model in training sees for the concept's prompts, at points of the anchor's trajectories."""
        return context.model.estimate_x0(rows.x_t, context.predict(rows.x_t, rows.t, rows.other_prompts), rows.t)

    def corrected_loss(self, context: TrainingContext, adversarial: Tensor, kept: Tensor) -> Tensor:
        """Return a loss (scalar) with the value of adversarial + w kept, whose gradient is the corrected g_a + w g_r."""
        parameters = list(context.groups["model"].parameters.values())
        pairs = [average_tensors(torch.autograd.grad(loss, parameters, materialize_grads=True)) for loss in (adversarial, kept)]
        context.model.cost.sample_gradients += self.batch + self.retain_batch
        gradients = [remove_conflict(g_a, g_r) + self.retain_weight * g_r for g_a, g_r in zip(*pairs, strict=True)]
        product = torch.stack([(g * p).sum() for g, p in zip(gradients, parameters, strict=True)]).sum()
        return (adversarial + self.retain_weight * kept).detach() + product - product.detach()

    def step_cost(self, step: int) -> Cost:
        if step < self.warmup:
            return Cost(unet_forwards=self.batch)
        passes = self.batch + self.retain_batch
        return Cost(unet_forwards=passes, unet_backwards=passes, sample_gradients=passes)

    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {
        ("style", "pocket"): {**_POCKET, "retain_weight": 1.0, "prompts": pocket_prompts.STYLE, "anchor": "plain"},
        ("object", "pocket"): {**_POCKET, "prompts": pocket_prompts.OBJECT},
        ("person", "pocket"): {**_POCKET, "prompts": pocket_prompts.PERSON},
    }


def remove_conflict(adversarial: Tensor, kept: Tensor) -> Tensor:
    """Return g_a - min(0, <g_a, g_r>) / |g_r|^2 g_r, in the shape of the gradients."""
    along, square = (adversarial * kept).sum(), kept.square().sum()
    return adversarial - (along.clamp(max=0) / square) * kept if square > 0 else adversarial


def initial_critic(latent_shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """Return the weights of the critic by name: convolutions that halve the latent while it has 4 pixels, and one to a map of logits."""
    channels, height, width = latent_shape
    layers = max(1, min(MAX_LAYERS, int(math.log2(min(height, width))) - 1))
    widths, generator = [channels, *(WIDTH << i for i in range(layers))], torch.Generator().manual_seed(0)
    shapes = [(b, a, 4, 4) for a, b in pairwise(widths)] + [(1, widths[-1], 3, 3)]
    weights = {}
    for i, shape in enumerate(shapes):
        fan_in = math.prod(shape[1:])
        weights[f"critic.{i}.weight"] = torch.randn(shape, generator=generator) * math.sqrt(2 / fan_in)
        weights[f"critic.{i}.bias"] = torch.zeros(shape[0])
    return weights


def read_critic(critic: dict[str, nn.Parameter], x_0: Tensor) -> Tensor:
    """Return the critic's logits (B, 1, h', w') of latents; high ones say that they come from the concept's prompts."""
    last = len(critic) // 2 - 1
    for i in range(last):
        x_0 = F.conv2d(x_0, critic[f"critic.{i}.weight"], critic[f"critic.{i}.bias"], stride=2, padding=1)
        x_0 = F.leaky_relu(F.group_norm(x_0, 8) if i else x_0, 0.2)
    return F.conv2d(x_0, critic[f"critic.{last}.weight"], critic[f"critic.{last}.bias"], padding=1)


def critic_loss(critic: dict[str, nn.Parameter], x_0: Tensor, label: float) -> Tensor:
    """Return the critic's binary cross-entropy (scalar) on latents of one label: 0 the anchor's, 1 the concept's."""
    logits = read_critic(critic, x_0)
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
