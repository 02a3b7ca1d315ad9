"""CLIP alignment of picture and prompt by any open_clip model (Radford et al., arXiv:2103.00020; Hessel et al., arXiv:2104.08718)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import Normalize
from torchvision.transforms.functional import resize

from erasure.errors import UserError
from erasure.loading import POCKET
from eval.judges.base import Judge

OWN = f"local-dir:{POCKET / 'open_clip'}"


@dataclass(frozen=True, kw_only=True)
class OpenClip(Judge):
    """Reads {"cosine"}: 100 times the cosine of image and text embedding.

    The default is pocket's own open_clip model, trained apart from the pipeline's text encoder.
    """

    model: str = OWN  # an open_clip name, or local-dir:FOLDER
    pretrained: str = ""  # open_clip tag or weights file, for names

    def identity(self) -> dict[str, Any]:
        network, _, _ = _load(self.model, self.pretrained)
        digest = hashlib.sha256()
        for name, p in network.state_dict().items():
            digest.update(name.encode() + p.cpu().numpy().tobytes())
        return {"model": Path(self.model).name, "weights": digest.hexdigest()}

    @torch.no_grad()
    def read(self, images: Tensor, prompts: Sequence[str]) -> list[dict[str, Any]]:
        network, tokenizer, normalize = _load(self.model, self.pretrained)
        size = network.visual.image_size
        pictures = normalize(resize(images.float().cpu(), list(size if isinstance(size, tuple) else (size, size)), antialias=True))
        image = F.normalize(network.encode_image(pictures), dim=-1)
        text = F.normalize(network.encode_text(tokenizer(list(prompts))), dim=-1)
        return [{"cosine": round(100 * c, 3)} for c in (image * text).sum(-1).tolist()]


@cache
def _load(model: str, pretrained: str) -> tuple[Any, Any, Normalize]:
    """Network, tokenizer and normalisation; weights are required, a randomly initialised judge is never used."""
    try:
        network, _ = open_clip.create_model_from_pretrained(model, pretrained or None)
        tokenizer = open_clip.get_tokenizer(model)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"open_clip cannot load {model!r} {pretrained!r}: {str(error).splitlines()[0]}.") from error
    mean, std = network.visual.image_mean, network.visual.image_std
    return network.eval().requires_grad_(False), tokenizer, Normalize(mean, std)
