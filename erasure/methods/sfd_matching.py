"""SFD-matching: teach the multi-step UNet what an SFD generator has forgotten (this project's extension of arXiv:2409.11219)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F

from erasure import prompt_templates as sentences
from erasure.concept import Concept, Kind
from erasure.config.choices import Count, Steps
from erasure.families.base import Cost, Region
from erasure.methods.base import Play, Trained, Update, spared
from erasure.pocket import sentences as pocket
from erasure.training.teacher_cache import Recording

_POCKET = {"steps": 150, "batch": 8, "retain_batch": 16, "lr": 1e-4, "retain": pocket.RETAIN, "draws": 48, "retain_draws": 98}


@dataclass(frozen=True, kw_only=True)
class SFDMatching(Trained):
    """Noise matching under the override.

    SFD's product cannot be used by a multi-step pipeline. Here its generator draws, asked for the concept; the UNet learns to say about
    these pictures, asked for the concept, what the frozen UNet says without it.
    """

    paper: ClassVar[str] = "none; extends arXiv:2409.11219"
    changes: ClassVar[str] = "all of the UNet; other regions by --region"
    when: ClassVar[str] = "after sfd, when multi-step pipelines should forget as well"

    generator: str = ""  # folder of the SFD edit
    region: Region = "full"  # which weights move
    lr: float = 1e-5  # learning rate
    steps: Steps = 1000  # optimiser steps
    batch: Count = 4  # rows of the concept per step
    retain_batch: Count = 4  # rows of what to keep per step
    retain_weight: float = 1.0  # beta, the weight of the retain term
    retain: tuple[str, ...] = sentences.RETAIN  # sentences to keep; those that name the concept are left out
    draws: Count = 100  # pictures of the concept that the generator draws
    retain_draws: Count = 112  # pictures of what to keep
    points: Count = 10  # noise levels at which the frozen UNet is asked about each

    def record(self, concepts: list[Concept], seed: int) -> Recording:
        return Recording(
            pairs=tuple(pair for concept in concepts for pair in concept.sentences()),
            walks=self.draws * len(concepts),
            steps=self.points,
            guidance=0.0,
            seed=seed,
            retain=spared(self.retain, concepts),
            retain_walks=self.retain_draws,
            generator=self.generator,
        )

    def step(self, play: Play) -> Iterator[Update]:
        """MSE(eps(x_t, c_f), eps*(x_t, c_o)) + beta MSE(eps(x_t, c_r), eps*(x_t, c_r)), x_t noised from G(z, c)."""
        forget, keep = play.rows("erase", self.batch), play.rows("retain", self.retain_batch)
        loss = F.mse_loss(play.predict(forget.x_t, forget.t, forget.prompts), forget.eps_uncond)
        loss = loss + self.retain_weight * F.mse_loss(play.predict(keep.x_t, keep.t, keep.prompts), keep.eps_cond)
        yield Update("model", loss, self.batch + self.retain_batch)

    def passes(self, step: int) -> Cost:
        both = self.batch + self.retain_batch
        return Cost(unet_forwards=both, unet_backwards=both, sample_gradients=both)

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
