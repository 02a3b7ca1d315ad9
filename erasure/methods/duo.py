"""DUO: prefer the image without the concept over the one with it, both from the same noise (Park et al., arXiv:2407.21035)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from erasure.concept import Concept, ConceptKind
from erasure.config.choices import Count, Region, ScheduleSteps, Steps, Weight
from erasure.config.seeds import derive_seed
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.batching import images_at_once
from erasure.families.cost import Cost
from erasure.methods.base import OptimizerStep, TrainableGroup, Trained, TrainingContext
from erasure.pocket import prompts as pocket_prompts
from erasure.training.teacher_cache import LatentBatch, TeacherQuery

_POCKET = {
    "beta": 50.0,
    "anchor_weight": 1.0,
    "largest_time": 1.0,
    "lr": 5e-4,
    "steps": 150,
    "batch": 8,
    "trajectories": 96,
    "trajectory_steps": 25,
}
NOISE_SEEDS, ANCHOR_SEEDS = 1_000_000, 2_000_000  # offsets of seeds, apart from those of trajectories


@dataclass(frozen=True, kw_only=True)
class DUO(Trained):
    """Direct unlearning optimization.

    The authors edit images (SDEdit) for pairs with and without the concept. Here a pair is free: the prompt with the concept and the same
    without it, sampled from one seed. The frozen model's errors are computed once, on a fixed set of noised pairs, so no network
    is needed twice. Both halves of a pair have the same time and the same noise; the released code draws two times.

    Raises:
        UserError: beta or the largest time is not positive, or a weight is negative.
    """

    paper: ClassVar[str] = "arXiv:2407.21035"
    changes: ClassVar[str] = "cross-attention, or the text side of joint attention; choose other weights with --region"
    when: ClassVar[str] = "for experiments: on the pocket model it hides a concept only where much else is lost"
    unfit: ClassVar[dict[ConceptKind, str]] = {
        "style": "on pocket's development style it lost a quarter of the other styles at the only setting that hid it",
        "object": "on pocket's development object it lost a third of the styles at the only setting that hid it",
    }

    beta: float = 500.0  # how soon the preference levels off, in units of 1 / mean squared error
    anchor_weight: Weight = 1e4  # weight of predicting as before on pure noise, the paper's prior term
    largest_time: float = 0.75  # share of the schedule, from its clean end, from which times are drawn
    levels: Count = 8  # noised copies of every pair on which the frozen model's errors are computed
    region: Region = "xattn"  # which weights to train
    lr: float = 3e-4  # learning rate
    steps: Steps = 1000  # optimizer steps
    batch: Count = 4  # pairs per step
    trajectories: Count = 64  # pairs per concept
    trajectory_steps: ScheduleSteps = 50  # DDIM steps per image
    trajectory_guidance: float = 7.5  # classifier-free guidance of the images

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise UserError(f"--beta must be positive, got {self.beta:g}.")
        if not 0 < self.largest_time <= 1:
            raise UserError(f"--largest-time is a share of the schedule in (0, 1], got {self.largest_time:g}.")
        if self.anchor_weight < 0:
            raise UserError(f"--anchor-weight must not be negative, got {self.anchor_weight:g}.")

    @property
    def samples_per_backward(self) -> int:
        return 3 * self.batch

    def query(self, concepts: list[Concept], seed: int) -> TeacherQuery:
        return TeacherQuery(
            prompt_pairs=tuple(pair for concept in concepts for pair in concept.prompt_pairs()),
            trajectories=self.trajectories * len(concepts),
            steps=self.trajectory_steps,
            guidance=self.trajectory_guidance,
            seed=seed,
            store="latents",
        )

    @torch.no_grad()
    def prepare(self, context: TrainingContext, groups: dict[str, TrainableGroup]) -> None:
        """Sample the halves without the concept from the same seeds, and compute the frozen model's margins and predictions."""
        count = len(context.cache.x_0)
        size, pairs = images_at_once(context.model, self.batch), torch.arange(count)
        context.state["without"] = torch.cat([self.sample_without(context, chunk) for chunk in pairs.split(size)])
        context.state["times"] = self.largest_time * self.draw_times(context, count * self.levels)
        rows = torch.arange(count * self.levels).split(size)
        context.state["margins"] = torch.cat([self.error_margin(context, chunk) for chunk in rows])
        context.state["anchors"] = torch.cat([self.predict_from_noise(context, chunk) for chunk in pairs.split(size)])

    def sample_without(self, context: TrainingContext, pairs: Tensor) -> Tensor:
        """Return x_0 (B, C, h, w) of the prompts without the concept, from the noise of the images with it."""
        model, query = context.model, context.cache.query
        starts = [query.trajectory_starts()[i] for i in pairs.tolist()]
        cond = context.encode([query.prompt_pair(index)[1] for _, index in starts])
        empty = context.encode([""]).expand(len(starts))
        latents = model.sample_noise([seed for seed, _ in starts])
        for step in model.trajectory(latents, cond, empty, self.trajectory_steps, self.trajectory_guidance):
            latents = step.x_next
        return latents

    def draw_times(self, context: TrainingContext, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(context.cache.query.seed, NOISE_SEEDS))
        return context.model.random_times(count, generator)

    def error_margin(self, context: TrainingContext, rows: Tensor) -> Tensor:
        """Return l+ - l- (B,) of rows (B,): the error on the noised image without the concept minus that on the one with it."""
        model, cache, pairs = context.model, context.cache, rows // self.levels
        with_concept: LatentBatch = cache.gather_latents(pairs, model.device)
        x_0 = torch.cat([context.state["without"][pairs], with_concept.x_0])
        noise = model.sample_noise([derive_seed(cache.query.seed, NOISE_SEEDS + 1 + i) for i in rows.tolist()]).repeat(2, 1, 1, 1)
        t = context.state["times"][rows].to(model.random_times(0).dtype).repeat(2)
        prediction = context.predict(model.add_noise(x_0, noise, t), t, with_concept.prompts * 2)
        errors = (prediction - model.schedule.target(x_0, noise)).square().flatten(1).mean(1)
        without_error, with_error = errors.chunk(2)
        return without_error - with_error

    def predict_from_noise(self, context: TrainingContext, pairs: Tensor) -> Tensor:
        """Return predictions (B, C, h, w) for the prompts with the concept at the noisiest time, where x_t is noise."""
        model, cache = context.model, context.cache
        noise = model.sample_noise([derive_seed(cache.query.seed, ANCHOR_SEEDS + i) for i in pairs.tolist()])
        t = torch.full((len(pairs),), model.schedule.sampler(self.trajectory_steps).times[0], device=model.device)
        return context.predict(noise, t, cache.gather_latents(pairs, model.device).prompts)

    def step(self, context: TrainingContext) -> Iterator[OptimizerStep]:
        rows = torch.randint(len(context.state["margins"]), (self.batch,))
        pairs = torch.randint(len(context.state["anchors"]), (self.batch,))
        anchor = F.mse_loss(self.predict_from_noise(context, pairs), context.state["anchors"][pairs])
        yield OptimizerStep("model", self.loss(context, rows) + self.anchor_weight * anchor)

    def loss(self, context: TrainingContext, rows: Tensor) -> Tensor:
        """Return -(1 / beta) log sigma(-beta [(l+ - l*+) - (l- - l*-)]), averaged (scalar); 1 / beta keeps its slope that of an error."""
        grown = self.error_margin(context, rows) - context.state["margins"][rows]
        return -F.logsigmoid(-self.beta * grown).mean() / self.beta

    def step_cost(self, step: int) -> Cost:
        passes = 3 * self.batch
        return Cost(unet_forwards=passes, unet_backwards=passes, sample_gradients=passes)

    def prepare_cost(self, query: TeacherQuery) -> Cost:
        return Cost(unet_forwards=query.trajectories * (2 * self.levels + 1))

    def forecast_cost(self, model: DiffusionModel, concepts: list[Concept]) -> Cost:
        halves = self.trajectories * len(concepts) * self.trajectory_steps * model.forwards_per_step
        return super().forecast_cost(model, concepts) + Cost(unet_forwards=halves)

    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {
        ("style", "pocket"): {**_POCKET, "prompts": pocket_prompts.STYLE},
        ("object", "pocket"): {**_POCKET, "prompts": pocket_prompts.OBJECT},
        ("person", "pocket"): {**_POCKET, "prompts": pocket_prompts.PERSON},
    }
