"""Pictures of a model while it is being trained, for people who watch."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from erasure.errors import NotFinite
from erasure.methods.base import Play, Trained
from erasure.storage.files import replacing


class Preview:
    """Draws a strip of pictures into one PNG, at most a tenth of the time.

    Args:
        path: the file, replaced in one atomic step.
        prompts: one picture each, always from the same noise.
    """

    STEPS = 8  # DDIM steps: enough to see what becomes of a picture

    def __init__(self, path: Path, prompts: Sequence[str], every: float = 3.0) -> None:
        self.path, self.prompts, self.every = path, list(prompts), every
        self.due = time.monotonic()

    def __call__(self, method: Trained, play: Play) -> None:
        begun = time.monotonic()
        if begun < self.due:
            return
        try:
            with torch.no_grad():
                latents = method.drawn(play, self.prompts, list(range(len(self.prompts))), self.STEPS)
                pictures = (play.model.decode(latents).cpu() * 255).round().to(torch.uint8)
        except NotFinite:
            return  # the training has diverged, and says at its next loss why
        strip = torch.cat(tuple(pictures), dim=2).permute(1, 2, 0).numpy()
        with replacing(self.path) as file:
            Image.fromarray(strip).save(file, format="PNG")
        taken = time.monotonic() - begun
        self.due = time.monotonic() + max(self.every, 10 * taken)
