"""ESD: train the concept's noise prediction toward its negatively guided one (Gandikota et al., arXiv:2303.07345)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from erasure.concept import Concept, ConceptKind
from erasure.config.choices import Count, Region, ScheduleSteps, Steps
from erasure.methods.base import OptimizerStep, Trained, TrainingContext
from erasure.pocket import prompts as pocket_prompts
from erasure.training.teacher_cache import TeacherBatch, TeacherQuery

_POCKET = {"steps": 150, "batch": 8, "trajectories": 24, "trajectory_steps": 25}


@dataclass(frozen=True, kw_only=True)
class ESD(Trained):
    """Erased Stable Diffusion.

    The paper's eta starts at the unconditional prediction. The authors' newer script starts at the conditional one, so its value is one
    larger: its default of 2 is this default of 1. Trajectories come from the frozen model, as in that script.
    """

    paper: ClassVar[str] = "arXiv:2303.07345"
    changes: ClassVar[str] = "cross-attention, or the text side of joint attention; choose other weights with --region"
    when: ClassVar[str] = "the first to try: cheap, and erases well; attacks can bring the concept back"

    negative_guidance: float = 1.0  # how far to push past the prediction without the concept, the paper's eta
    region: Region = "xattn"  # which weights to train: cross-attention for styles and names, all others for global concepts such as nudity
    erase_from: str = ""  # erase the concept only as an attribute of this noun, such as "rose" for the concept "red"
    lr: float = 1e-5  # learning rate
    steps: Steps = 1000  # optimizer steps
    batch: Count = 1  # cached trajectory points per step
    trajectories: Count = 20  # guided trajectories of the frozen model per concept
    trajectory_steps: ScheduleSteps = 50  # DDIM steps per trajectory
    trajectory_guidance: float = 3.0  # classifier-free guidance of the trajectories

    def query(self, concepts: list[Concept], seed: int) -> TeacherQuery:
        pairs = tuple(pair for concept in concepts for pair in self.prompt_pairs(concept))
        return TeacherQuery(
            prompt_pairs=pairs,
            trajectories=self.trajectories * len(concepts),
            steps=self.trajectory_steps,
            guidance=self.trajectory_guidance,
            seed=seed,
        )

    def prompt_pairs(self, concept: Concept) -> list[tuple[str, str]]:
        """Return training pairs; with `erase_from`, "red rose" is trained toward "rose": the rose stays, its color is erased."""
        if self.erase_from:
            return [(f"{concept.name} {self.erase_from}", self.erase_from)]
        return concept.prompt_pairs()

    def step(self, context: TrainingContext) -> Iterator[OptimizerStep]:
        yield OptimizerStep("model", self.loss(context, context.sample_rows("erase", self.batch)))

    def loss(self, context: TrainingContext, rows: TeacherBatch) -> Tensor:
        """Return the mean squared error (scalar) between eps(x_t, c) and its negatively guided target."""
        # eps(x_t, without) - eta [eps(x_t, c) - eps(x_t, without)]
        target = rows.pred_neutral - self.negative_guidance * (rows.pred_cond - rows.pred_neutral)
        return F.mse_loss(context.predict(rows.x_t, rows.t, rows.prompts), target)

    recipes: ClassVar[dict[tuple[ConceptKind, str], dict[str, Any]]] = {
        # tuned on the development concepts neon and boat; docs/results/esd.md has the figures of all others
        ("style", "pocket"): {**_POCKET, "lr": 3e-4, "prompts": pocket_prompts.STYLE},
        ("object", "pocket"): {**_POCKET, "lr": 2e-4, "prompts": pocket_prompts.OBJECT},
        ("person", "pocket"): {**_POCKET, "lr": 2e-4, "prompts": pocket_prompts.PERSON},
        # tuned on the same two; a first recipe, with 150 steps on xattn, reached other concepts by half (docs/results/pocket-flow.md)
        ("style", "pocket-flow"): {**_POCKET, "region": "text-proj", "lr": 1e-3, "steps": 400, "prompts": pocket_prompts.STYLE},
        ("object", "pocket-flow"): {**_POCKET, "lr": 1e-3, "steps": 400, "prompts": pocket_prompts.OBJECT},
        ("person", "pocket-flow"): {**_POCKET, "lr": 1e-3, "steps": 400, "prompts": pocket_prompts.PERSON},
        # for global concepts the paper trains everything but cross-attention; nothing below was run on released weights
        **{("nsfw", family): {"region": "noxattn"} for family in ("sd1", "sd2", "sd3")},
        # learning rates and step counts of the authors' scripts for these models
        **{(kind, "sdxl"): {"lr": 2e-4, "steps": 200, "trajectory_guidance": 2.0} for kind in ("style", "object", "person")},
        ("nsfw", "sdxl"): {"region": "noxattn", "lr": 2e-4, "steps": 200, "trajectory_guidance": 2.0},
        **{(kind, family): {"lr": 1e-4} for kind in ("style", "object", "person") for family in ("flux", "flux2-klein")},
        **{("nsfw", family): {"region": "noxattn", "lr": 1e-4} for family in ("flux", "flux2-klein")},
    }
