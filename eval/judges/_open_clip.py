"""What the open_clip judges share: weights that really exist, their hash, and images preprocessed as in the model's training."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from open_clip.pretrained import download_pretrained_from_hf
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from erasure.errors import UserError, unknown_value_error
from erasure.loading.loader import POCKET_FOLDER, first_line_of
from eval.judges.base import MissingWeights

LOCAL, HUB = "local-dir:", "hf-hub:"
POCKET_OPEN_CLIP = f"{LOCAL}{POCKET_FOLDER / 'open_clip'}"


class OpenClipModel(NamedTuple):
    """An open_clip model in eval mode with its tokenizer and preprocessing."""

    network: Any
    tokenizer: Any
    preprocess: Callable[[Image], Tensor]
    weights: str  # SHA-256 over names and values

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Return unit embeddings (B, D) of images [B, 3, H, W] in [0, 1], rounded to 8-bit RGB as in PNG files."""
        pixels = (images.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        return F.normalize(self.network.encode_image(torch.stack([self.preprocess(to_pil_image(image)) for image in pixels])), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """Return unit embeddings (N, D) of texts."""
        return F.normalize(self.network.encode_text(self.tokenizer(texts)), dim=-1)


@cache
def load_open_clip(model: str, pretrained: str) -> OpenClipModel:
    """Load an open_clip model with its weights; a randomly initialized model never judges.

    Raises:
        MissingWeights: there is no such folder or file, and no reachable download.
        UserError: the name is unknown, or the weights are broken or do not fit.
    """
    require_weights(model, pretrained)
    try:
        network, preprocess = open_clip.create_model_from_pretrained(model, pretrained or None)
        tokenizer = open_clip.get_tokenizer(model)
    except (OSError, RuntimeError, ValueError, UnpicklingError, SafetensorError) as error:
        raise UserError(f"open_clip cannot load {model!r} {pretrained!r}: {first_line_of(error)}.") from error
    digest = hashlib.sha256()
    for name, p in network.state_dict().items():
        digest.update(name.encode() + p.cpu().numpy().tobytes())
    return OpenClipModel(network.eval().requires_grad_(False), tokenizer, preprocess, digest.hexdigest())


def require_weights(model: str, pretrained: str) -> None:
    """Check that the weights exist: open_clip's own errors do not distinguish a missing file from a broken one.

    Raises:
        MissingWeights: there is no such folder or file, and no reachable download.
        UserError: open_clip has no model of that name.
    """
    if model.startswith(LOCAL):
        folder = Path(model.removeprefix(LOCAL))
        suffixes = [path.suffix for path in folder.iterdir()] if (folder / "open_clip_config.json").is_file() else []
        if not {".safetensors", ".bin", ".pth"}.intersection(suffixes):
            raise MissingWeights("open_clip model", f"open_clip_config.json and a weights file in {folder}", "give a folder that has both")
        return
    if model.startswith(HUB):
        _require_download(model, lambda: download_pretrained_from_hf(model.removeprefix(HUB)))
        return
    name = model.replace("/", "-")
    if name not in open_clip.list_models():
        raise unknown_value_error("open_clip model", model, open_clip.list_models())
    if tag := open_clip.get_pretrained_cfg(name, pretrained):
        _require_download(f"{model} {pretrained}", lambda: open_clip.download_pretrained(tag))
    elif not Path(pretrained).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise MissingWeights(f"weights {pretrained!r} of {model}", f"a file of that name and among the tags ({tags})", "give one of them")


def _require_download(name: str, fetch: Callable[[], str]) -> None:
    try:
        fetch()
    except (OSError, RuntimeError) as error:
        location = f"them in the local cache and on the hub ({first_line_of(error)})"
        raise MissingWeights(f"weights of {name}", location, f"fetch them where there is a network, or use {LOCAL}FOLDER") from error
