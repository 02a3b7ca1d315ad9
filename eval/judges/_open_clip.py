"""What the judges on open_clip share: weights that are really there, their hash, and pictures as the model was trained to see them."""

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

from erasure.errors import UserError, unknown
from erasure.loading.loader import POCKET, first_line
from eval.judges.base import MissingWeights

LOCAL, HUB = "local-dir:", "hf-hub:"
OWN = f"{LOCAL}{POCKET / 'open_clip'}"


class Loaded(NamedTuple):
    network: Any
    tokenizer: Any
    preprocess: Callable[[Image], Tensor]
    weights: str  # SHA-256 over names and values

    @torch.no_grad()
    def see(self, images: Tensor) -> Tensor:
        """Unit embeddings (B, D) of images (B, 3, H, W) in [0, 1], which are taken as 8-bit RGB, as PNG files hold them."""
        whole = (images.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        return F.normalize(self.network.encode_image(torch.stack([self.preprocess(to_pil_image(image)) for image in whole])), dim=-1)

    @torch.no_grad()
    def say(self, texts: list[str]) -> Tensor:
        """Unit embeddings (N, D) of texts."""
        return F.normalize(self.network.encode_text(self.tokenizer(texts)), dim=-1)


@cache
def load(model: str, pretrained: str) -> Loaded:
    """An open_clip model with its weights; a randomly initialised model never judges.

    Raises:
        MissingWeights: no such folder, file, or reachable download.
        UserError: an unknown name, weights that are broken or do not fit.
    """
    find(model, pretrained)
    try:
        network, preprocess = open_clip.create_model_from_pretrained(model, pretrained or None)
        tokenizer = open_clip.get_tokenizer(model)
    except (OSError, RuntimeError, ValueError, UnpicklingError, SafetensorError) as error:
        raise UserError(f"open_clip cannot load {model!r} {pretrained!r}: {first_line(error)}.") from error
    digest = hashlib.sha256()
    for name, p in network.state_dict().items():
        digest.update(name.encode() + p.cpu().numpy().tobytes())
    return Loaded(network.eval().requires_grad_(False), tokenizer, preprocess, digest.hexdigest())


def find(model: str, pretrained: str) -> None:
    """Complain where weights are not there: open_clip's own errors do not tell a missing file from a broken one."""
    if model.startswith(LOCAL):
        folder = Path(model.removeprefix(LOCAL))
        held = [path.suffix for path in folder.iterdir()] if (folder / "open_clip_config.json").is_file() else []
        if not {".safetensors", ".bin", ".pth"}.intersection(held):
            raise MissingWeights("open_clip model", f"open_clip_config.json and a weights file in {folder}", "give a folder that has both")
        return
    if model.startswith(HUB):
        _fetched(model, lambda: download_pretrained_from_hf(model.removeprefix(HUB)))
        return
    name = model.replace("/", "-")
    if name not in open_clip.list_models():
        raise unknown("open_clip model", model, open_clip.list_models())
    if tag := open_clip.get_pretrained_cfg(name, pretrained):
        _fetched(f"{model} {pretrained}", lambda: open_clip.download_pretrained(tag))
    elif not Path(pretrained).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise MissingWeights(f"weights {pretrained!r} of {model}", f"a file of that name and among the tags ({tags})", "give one of them")


def _fetched(what: str, fetch: Callable[[], str]) -> None:
    try:
        fetch()
    except (OSError, RuntimeError) as error:
        place = f"them in the local cache and on the hub ({first_line(error)})"
        raise MissingWeights(f"weights of {what}", place, f"fetch them where there is a network, or use {LOCAL}FOLDER") from error
