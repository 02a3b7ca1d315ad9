"""SalUn: train only the salient weights so that the concept's pictures get another label (Fan et al., arXiv:2310.12508)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from erasure import prompt_templates as sentences
from erasure.concept import Concept, Kind
from erasure.config.choices import Count, ScheduleSteps, Steps
from erasure.families.base import Cost, Region
from erasure.methods.base import Play, Player, Trained, Update, spared, trainable
from erasure.pocket import sentences as pocket
from erasure.training import saliency
from erasure.training.teacher_cache import Latents, Recording

_POCKET = {
    "steps": 150,
    "batch": 8,
    "retain_batch": 8,
    "retain_weight": 1.0,
    "walks": 96,
    "retain_walks": 176,
    "walk_steps": 25,
    "retain": pocket.RETAIN,
}
_SD = {"retain": sentences.RETAIN, "retain_walks": 112, "walks": 90}


@dataclass(frozen=True, kw_only=True)
class SalUn(Trained):
    """Saliency unlearning.

    Pictures of the concept and of what to keep are made by the model itself from sentences; their latents are used as they are. Or they
    come from folders of real images. Timesteps are drawn from the whole schedule, noise is fresh in every step.
    """

    paper: ClassVar[str] = "arXiv:2310.12508"
    changes: ClassVar[str] = "the most salient half of the UNet's weights"
    when: ClassVar[str] = "when attacks matter and some drift elsewhere is acceptable; needs sentences or pictures of what to keep"

    region: Region = "full"  # which weights may move, before the mask
    lr: float = 1e-5  # learning rate
    steps: Steps = 500  # optimiser steps
    batch: Count = 8  # forget samples per step
    retain_batch: Count = 8  # retain samples per step
    retain_weight: float = 0.1  # alpha, the weight of the retain term
    retain: tuple[str, ...] = sentences.RETAIN  # sentences to keep; those that name the concept are left out
    mask_fraction: float = 0.5  # share of the weights that may move
    mask_over: Literal["all", "region"] = "all"  # whose gradients are ranked: the whole UNet's or the region's
    mask_guidance: float = 7.5  # w in (1 + w) eps(c) - w eps(empty), whose loss gives the gradients
    threshold: saliency.Threshold = "histogram"  # how the ranking is cut: histogram, or exact kthvalue
    walks: Count = 100  # pictures of the concept
    retain_walks: Count = 100  # pictures of what to keep
    walk_steps: ScheduleSteps = 50  # DDIM steps of each
    walk_guidance: float = 7.5  # classifier-free guidance of the pictures
    images: str = ""  # folder of real images of the concept, in place of walks; hidden files are passed over
    retain_images: str = ""  # folder of real images of what to keep

    def __post_init__(self) -> None:
        super().__post_init__()
        saliency.check(self.mask_fraction)

    def record(self, concepts: list[Concept], seed: int) -> Recording:
        pairs = tuple(pair for concept in concepts for pair in concept.sentences())
        return Recording(
            pairs=pairs,
            walks=self.walks * len(concepts),
            steps=self.walk_steps,
            guidance=self.walk_guidance,
            seed=seed,
            retain=spared(self.retain, concepts),
            retain_walks=self.retain_walks,
            keep="latents",
            images=self.images,
            retain_images=self.retain_images,
        )

    def prepare(self, play: Play, players: dict[str, Player]) -> None:
        """The mask, unless one was given: m = 1[|sum of gradients| >= gamma] (equation 4)."""
        names = play.model.region("full" if self.mask_over == "all" and self.region != "text-encoder" else self.region)
        trained = players["model"].parameters
        if not play.masks:
            others = [name for name in names if name not in trained]
            with trainable(play.model, others) as rest:
                gradients = self._gradients(play, {**trained, **rest})
            masks = saliency.top(gradients, self.mask_fraction, self.threshold)
            play.masks = {name: masks[name] for name in trained}
        play.notes["mask"] = saliency.shares(play.masks)

    def _gradients(self, play: Play, parameters: dict[str, Any]) -> dict[str, Tensor]:
        """Summed over one pass through the forget set; the sign of the loss does not matter after the magnitude is taken."""
        rows = play.bank.latents("erase")
        for part in rows.split(self.batch):
            latents = play.bank.final(part, play.model.device)
            x_t, t, noise = noised(play, latents)
            cond, uncond = (play.predict(x_t, t, texts) for texts in (latents.prompts, [""] * len(t)))
            F.mse_loss((1 + self.mask_guidance) * cond - self.mask_guidance * uncond, noise).backward()
            play.model.cost.unet_backwards += 2 * len(t)
        found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in parameters.items()}
        for p in parameters.values():
            p.grad = None
        return found

    def step(self, play: Play) -> Iterator[Update]:
        """MSE(eps(x_t^f, c_f), sg eps(x_t^f, anchor)) + alpha MSE(eps(x_t^r, c_r), noise), both of the model as it is (equation 6)."""
        forget = play.latents("erase", self.batch)
        x_t, t, _ = noised(play, forget)
        with torch.no_grad():
            label = play.predict(x_t, t, forget.without)
        retain = play.latents("retain", self.retain_batch)
        x_r, t_r, noise = noised(play, retain)
        loss = F.mse_loss(play.predict(x_t, t, forget.prompts), label)
        loss = loss + self.retain_weight * F.mse_loss(play.predict(x_r, t_r, retain.prompts), noise)
        yield Update("model", loss, self.batch + self.retain_batch)

    def passes(self, step: int) -> Cost:
        both = self.batch + self.retain_batch
        return Cost(unet_forwards=self.batch + both, unet_backwards=both, sample_gradients=both)

    def preparation(self, recording: Recording) -> Cost:
        count = 2 * recording.walks  # a folder of images is counted when it is read
        return Cost(unet_forwards=count, unet_backwards=count)

    recipes: ClassVar[dict[tuple[Kind, str], dict[str, Any]]] = {
        ("style", "pocket"): {**_POCKET, "lr": 1e-4, "prompts": pocket.STYLE, "anchor": "plain"},
        ("object", "pocket"): {**_POCKET, "lr": 1e-4, "prompts": pocket.OBJECT},
        ("person", "pocket"): {**_POCKET, "lr": 1e-4, "prompts": pocket.PERSON},
        # nothing below was run on real SD weights; lengths and weights follow the paper
        **{("style", family): {**_SD, "prompts": sentences.STYLE, "retain_weight": 0.5} for family in ("sd1", "sd2")},
        **{("object", family): {**_SD, "prompts": sentences.OBJECT, "retain_weight": 0.5} for family in ("sd1", "sd2")},
        **{("person", family): {**_SD, "prompts": sentences.PERSON, "retain_weight": 0.5} for family in ("sd1", "sd2")},
        **{("nsfw", family): {**_SD, "prompts": sentences.NSFW, "steps": 100} for family in ("sd1", "sd2")},
    }


def noised(play: Play, latents: Latents) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and the noise in it, for fresh t and noise."""
    noise = torch.randn(latents.x_0.shape).to(latents.x_0)
    t = torch.randint(1000, (len(noise),)).to(noise.device)
    return play.model.noised(latents.x_0, noise, t), t, noise
