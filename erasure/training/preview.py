"""Images of a model during its training, for people who watch."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from erasure.errors import NotFiniteError
from erasure.methods.base import Trained, TrainingContext
from erasure.storage.files import open_atomic


class Preview:
    """Generates a strip of images into one PNG, in at most a tenth of the training time.

    Args:
        path: the file, replaced atomically.
        prompts: one image each, always from the same noise.
        interval: seconds between previews, at least.
    """

    STEPS = 8  # DDIM steps: enough to see what an image will show

    def __init__(self, path: Path, prompts: Sequence[str], interval: float = 3.0) -> None:
        self.path, self.prompts, self.interval = path, list(prompts), interval
        self.next_time = time.monotonic()

    def __call__(self, method: Trained, context: TrainingContext) -> None:
        started = time.monotonic()
        if started < self.next_time:
            return
        try:
            with torch.no_grad():
                latents = method.generate_latents(context, self.prompts, list(range(len(self.prompts))), self.STEPS)
                images = (context.model.decode(latents).cpu() * 255).round().to(torch.uint8)
        except NotFiniteError:
            return  # the training has diverged; its next loss raises an error that says why
        strip = torch.cat(tuple(images), dim=2).permute(1, 2, 0).numpy()
        with open_atomic(self.path) as file:
            Image.fromarray(strip).save(file, format="PNG")
        elapsed = time.monotonic() - started
        self.next_time = time.monotonic() + max(self.interval, 10 * elapsed)
