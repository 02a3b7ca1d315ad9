"""Zero-shot classifier: any open_clip model with labels given as phrases (Radford et al., arXiv:2103.00020, section 3.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from erasure.errors import UserError
from erasure.pocket.canvas import STYLES
from eval.judges._open_clip import POCKET_OPEN_CLIP, load_open_clip
from eval.judges.base import Judge
from eval.records.scores import LabelScore

NO_LABEL = "none"


def pocket_style_labels() -> dict[str, Sequence[str]]:
    return {style: (style,) for style in STYLES}


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Judge):
    """Gives the best label, its probability, and as `scores` the probability of every label.

    A label's embedding is the mean over all its phrases in all templates (section 3.1.4). Probabilities are shares among the given labels:
    an image of something else is forced into one of them unless `margin` says "none". A margin does not catch every broken image.
    """

    model: str = POCKET_OPEN_CLIP  # an open_clip name, local-dir:FOLDER or hf-hub:ORG/NAME
    pretrained: str = ""  # open_clip tag or weights file, for names
    labels: Mapping[str, Sequence[str]] = field(default_factory=pocket_style_labels)  # label -> phrases that mean it, two labels or more
    templates: Sequence[str] = ("{} style", "an image in the style of {}")  # each with one {} for the phrase
    margin: float = 0.0  # "none" if the best label leads the second by less than this, in probability; 0: always a label

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise UserError(f"a zero-shot judge needs at least two labels, got {list(self.labels)}.")
        for name, phrases in (*self.labels.items(), ("templates", self.templates)):
            if isinstance(phrases, str) or not phrases or not all(isinstance(text, str) and text.strip() for text in phrases):
                raise UserError(f"{name!r} of a zero-shot judge needs a list of phrases, got {phrases!r}.")
        for template in self.templates:
            if template.count("{}") != 1:
                raise UserError(f"a template of a zero-shot judge holds exactly one {{}}, got {template!r}.")
        if not 0 <= self.margin < 1:
            raise UserError(f"the margin of a zero-shot judge must be in [0, 1), got {self.margin}.")

    def identity(self) -> dict[str, Any]:
        clip = load_open_clip(self.model, self.pretrained)
        return {
            "model": Path(self.model).name,
            "weights": clip.weights,
            "preprocess": clip.network.visual.preprocess_cfg,
            "labels": {label: list(phrases) for label, phrases in self.labels.items()},
            "templates": list(self.templates),
            "margin": self.margin,
        }

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[LabelScore]:
        clip = load_open_clip(self.model, self.pretrained)
        label_embeddings = embed_labels(self.model, self.pretrained, tuple(map(tuple, self.labels.values())), tuple(self.templates))
        probabilities = (clip.network.logit_scale.exp() * clip.encode_images(images) @ label_embeddings.T).softmax(-1)
        scores_by_image = [{label: round(p, 6) for label, p in zip(self.labels, row, strict=True)} for row in probabilities.tolist()]
        return [LabelScore(label=best_label(scores, self.margin), p=max(scores.values()), scores=scores) for scores in scores_by_image]


def best_label(scores: Mapping[str, float], margin: float) -> str:
    """Return the best label, or "none" if it does not lead by the margin."""
    best, second = sorted(scores, key=lambda label: -scores[label])[:2]
    return best if scores[best] - scores[second] >= margin else NO_LABEL


@cache
def embed_labels(model: str, pretrained: str, labels: tuple[tuple[str, ...], ...], templates: tuple[str, ...]) -> Tensor:
    """Return one unit embedding per label (L, D): the normalized mean of the unit embeddings of its phrases in all templates."""
    clip = load_open_clip(model, pretrained)
    texts_by_label = [[template.replace("{}", phrase) for phrase in phrases for template in templates] for phrases in labels]
    return F.normalize(torch.stack([clip.encode_texts(label_texts).mean(0) for label_texts in texts_by_label]), dim=-1)
