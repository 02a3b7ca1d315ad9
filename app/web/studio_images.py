"""The edits of a studio's first model under their names on the page, for the images API."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from app.web.image_models import BASE, sample_images
from app.web.studio import Studio
from erasure.edits import apply_edits


@dataclass(frozen=True)
class StudioImages:
    """What a studio offers to the images API: the model itself as `base`, and every edit on its list, newest first."""

    studio: Studio

    @property
    def names(self) -> list[str]:
        return [*self.studio.edits(self.studio.first_source), BASE]

    @property
    def side(self) -> int:
        model = self.studio.models.get(self.studio.first_source).model
        return model.latent_shape[-1] * model.pixels_per_latent

    def generate(self, name: str, prompt: str, seeds: Sequence[int], steps: int, guidance: float | None) -> Tensor | None:
        model = self.studio.models.get(self.studio.first_source)
        edits = self.studio.load_edits(model.source, [] if name == BASE else [name])
        with self.studio.sampler.exclusive(model), apply_edits(model.model, edits):
            images = sample_images(model.model, prompt, seeds, steps, guidance)
        checker = self.studio.checker
        return None if checker and any(checker(images)) else images
