"""CLIP alignment of image and prompt by any open_clip model (Radford et al., arXiv:2103.00020; Hessel et al., arXiv:2104.08718)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.judges._open_clip import POCKET_OPEN_CLIP, load_open_clip
from eval.judges.base import Judge
from eval.records.scores import AlignmentScore


@dataclass(frozen=True, kw_only=True)
class OpenClip(Judge):
    """Scores 100 times the cosine of image and text embedding.

    The default is pocket's own open_clip model, trained separately from the pipeline's text encoder.
    """

    model: str = POCKET_OPEN_CLIP  # an open_clip name, local-dir:FOLDER or hf-hub:ORG/NAME
    pretrained: str = ""  # open_clip tag or weights file, for names

    def identity(self) -> dict[str, Any]:
        return {"model": Path(self.model).name, "weights": load_open_clip(self.model, self.pretrained).weights}

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[AlignmentScore]:
        clip = load_open_clip(self.model, self.pretrained)
        return [
            AlignmentScore(cosine=round(100 * cosine, 3))
            for cosine in (clip.encode_images(images) * clip.encode_texts(list(prompts))).sum(-1).tolist()
        ]
