"""A loaded model with and without edits, under names, for the images API."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from app.web.safety import SafetyChecker
from erasure.edits import Edit, apply_edits, revert_all
from erasure.families.base import DiffusionModel

BASE, ERASED = "base", "erased"


class ImageModels(Protocol):
    """What the images API asks of the models behind it."""

    @property
    def names(self) -> list[str]:
        """Names that a request may give, the default first."""

    @property
    def side(self) -> int:
        """Height and width of the images, in pixels."""

    def generate(self, name: str, prompt: str, seeds: Sequence[int], steps: int, guidance: float | None) -> Tensor | None:
        """Return images [B, 3, H, W], uint8, one a seed; None if the safety checker refuses one of them."""


@dataclass
class EditedModel:
    """One model: `erased` has all edits applied, `base` has none.

    Attributes:
        edits: applied together, in this order; without any there is only the base.
        strength: of the edits.
        checker: flags images that must not leave the server.
    """

    model: DiffusionModel
    edits: tuple[Edit, ...] = ()
    strength: float = 1.0
    checker: SafetyChecker | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)  # edits are applied to the one model in memory

    @property
    def names(self) -> list[str]:
        return [ERASED, BASE] if self.edits else [BASE]

    @property
    def side(self) -> int:
        return self.model.latent_shape[-1] * self.model.pixels_per_latent

    def generate(self, name: str, prompt: str, seeds: Sequence[int], steps: int, guidance: float | None) -> Tensor | None:
        with self.lock:
            revert_all(self.model.pipe)  # what a request that failed may have left
            with apply_edits(self.model, self.edits if name == ERASED else (), strength=self.strength):
                images = sample_images(self.model, prompt, seeds, steps, guidance)
        return None if self.checker and any(self.checker(images)) else images


@torch.no_grad()
def sample_images(
    model: DiffusionModel,
    prompt: str,
    seeds: Sequence[int],
    steps: int,
    guidance: float | None,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Return images [B, 3, H, W], uint8, of one prompt with one seed each; `on_step` as in DiffusionModel.sample."""
    latents = model.sample([prompt] * len(seeds), list(seeds), steps=steps, guidance=guidance, on_step=on_step)
    return (model.decode(latents).cpu() * 255).round().to(torch.uint8)
