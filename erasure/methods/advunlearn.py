"""AdvUnlearn: train the text encoder against soft prompts that bring the concept back (Zhang et al., arXiv:2405.15234)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from erasure import prompt_templates as sentences
from erasure.concept import Concept, Kind
from erasure.config.choices import Count, MaybeSteps, ScheduleSteps, Steps
from erasure.families.base import Cost, Region
from erasure.methods.base import Play, Trained, Update, spared
from erasure.pocket import sentences as pocket
from erasure.training.teacher_cache import Batch, Recording

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
    tokens: Count = 1  # soft tokens before the prompt that the attack may choose
    attack: Literal["pgd", "fast_at"] = "pgd"  # pgd: Adam steps; fast_at: steps along the sign of the gradient
    attack_steps: Steps = 30  # steps of the attack in every iteration
    attack_lr: float = 1e-3  # step size of the attack, in units of the input embeddings
    attack_init: Literal["random", "latest"] = "latest"  # where it starts: a random token, or where the last one ended
    warmup: MaybeSteps = 200  # iterations before the attack begins
    retain: tuple[str, ...] = sentences.RETAIN  # sentences to keep; those that name the concept are left out
    retain_loss: Literal["joint", "alternating"] = "alternating"  # one step on the sum, or a step on each
    retain_weight: float = 1.0  # gamma, the weight of the retain term; the paper takes 0.3 with joint steps
    retain_batch: Count = 5  # recorded rows to keep per iteration
    walks: Count = 20  # guided walks of the frozen model per concept
    retain_walks: Count = 56  # guided walks of what to keep
    walk_steps: ScheduleSteps = 50  # DDIM steps of a walk
    walk_guidance: float = 3.0  # classifier-free guidance of the walks

    def record(self, concepts: list[Concept], seed: int) -> Recording:
        return Recording(
            pairs=tuple(pair for concept in concepts for pair in concept.sentences()),
            walks=self.walks * len(concepts),
            steps=self.walk_steps,
            guidance=self.walk_guidance,
            seed=seed,
            retain=spared(self.retain, concepts),
            retain_walks=self.retain_walks,
        )

    def step(self, play: Play) -> Iterator[Update]:
        """min over T of L_e(T, delta*) + gamma L_r(T), with delta* = argmin MSE(eps(x_t, T([delta; c])), eps*(x_t, c)) (equation 4)."""
        rows = play.rows("erase", self.batch)
        attacked = int(play.state.setdefault("iteration", torch.zeros((), dtype=torch.long))) >= self.warmup
        prefix = self.attacked(play, rows) if attacked else None
        play.state["iteration"] = play.state["iteration"] + 1
        target = rows.eps_uncond - self.negative_guidance * (rows.eps_cond - rows.eps_uncond)
        erase = F.mse_loss(predicted(play, rows, prefix), target)
        if self.retain_loss == "alternating":
            yield Update("model", erase, self.batch)
        kept = play.rows("retain", self.retain_batch)
        retain = self.retain_weight * F.mse_loss(predicted(play, kept), kept.eps_cond)
        if self.retain_loss == "alternating":
            yield Update("model", retain, self.retain_batch)
        else:
            yield Update("model", erase + retain, self.batch + self.retain_batch)

    def attacked(self, play: Play, rows: Batch) -> Tensor:
        """Soft tokens (B, k, E), one set a row, that make the student say what the frozen model says about the concept."""
        vocabulary = play.model.vocabulary()
        delta = vocabulary[torch.randint(len(vocabulary), (self.batch, self.tokens)).to(vocabulary.device)]
        if self.attack_init == "latest" and "delta" in play.state:
            delta = play.state["delta"]
        delta = delta.clone().requires_grad_(True)
        adam = torch.optim.Adam([delta], lr=self.attack_lr)
        for _ in range(self.attack_steps):
            loss = F.mse_loss(predicted(play, rows, delta), rows.eps_cond)
            delta.grad = play.slope(loss, delta)
            if self.attack == "pgd":
                adam.step()
            else:
                delta.data -= self.attack_lr * delta.grad.sign()
        play.state["delta"] = delta.detach()
        return delta.detach()

    def passes(self, step: int) -> Cost:
        attack = self.attack_steps * self.batch if step >= self.warmup else 0
        outer = self.batch + self.retain_batch
        return Cost(unet_forwards=attack + outer, unet_backwards=attack + outer, text_forwards=attack + outer, sample_gradients=outer)

    recipes: ClassVar[dict[tuple[Kind, str], dict[str, Any]]] = {
        ("style", "pocket"): {**_POCKET, "lr": 2e-4, "retain_weight": 3.0, "retain_batch": 24, "prompts": pocket.STYLE},
        ("object", "pocket"): {**_POCKET, "lr": 4e-4, "prompts": pocket.OBJECT},
        ("person", "pocket"): {**_POCKET, "lr": 4e-4, "prompts": pocket.PERSON},
        # nothing below was run on real SD weights; joint steps at 0.3 are the paper's for nudity
        **{("style", family): {**_SD} for family in ("sd1", "sd2")},
        **{("object", family): {**_SD} for family in ("sd1", "sd2")},
        **{("person", family): {**_SD} for family in ("sd1", "sd2")},
        **{("nsfw", family): {**_SD, "retain_loss": "joint", "retain_weight": 0.3} for family in ("sd1", "sd2")},
    }


def predicted(play: Play, rows: Batch, prefix: Tensor | None = None) -> Tensor:
    """The student's prediction, with soft tokens before the prompts."""
    return play.model.predict(rows.x_t, rows.t, play.model.encode(rows.prompts, prefix))
