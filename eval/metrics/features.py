"""Extractors: images to the features that distances compare. A distance depends on its extractor, so the name goes with it."""

import hashlib
import io
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import NoTrainInceptionV3

from erasure.config.validation import build_dataclass
from erasure.errors import UserError, unknown_value_error
from erasure.pocket.canvas import SIZE
from eval.judges import _open_clip, _pocket
from eval.judges.base import MissingWeights
from eval.suites.formats import ExtractorSpec


@dataclass(frozen=True, kw_only=True)
class Extractor(ABC):
    """Base of all extractors."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name printed with every number."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what makes two extractors the same: name, weights hash, preprocessing."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Return features (B, d), fp32 on the CPU, of images [B, 3, H, W] in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class JudgeFeatures(Extractor):
    """Pooled features of pocket's two judges, the style and the object network, before their last layer; d = 256."""

    @property
    def name(self) -> str:
        return "judge"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "weights": [_pocket.classifier_identity(axis)["weights"] for axis in ("style", "object")], "size": SIZE}

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return style features, then object features (B, 256).

        Raises:
            UserError: the images have another size; the judges' features depend on it.
        """
        if images.shape[1:] != (3, SIZE, SIZE):
            raise UserError(f"extractor judge takes {SIZE}x{SIZE} RGB images, got {tuple(images.shape[1:])}; use inception or open_clip.")
        return torch.cat([_pocket.load_classifier(axis).features(images.float().cpu()) for axis in ("style", "object")], dim=1)


@dataclass(frozen=True, kw_only=True)
class Inception(Extractor):
    """The Inception-v3 of the published FIDs, d = 2048; images are resized to 299 with antialiasing, as torchmetrics does since 1.8."""

    weights: Path  # file of torch-fidelity's weights-inception-2015-12-05-6726825d.pth

    @property
    def name(self) -> str:
        return "inception"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "weights": _load_inception(self.weights)[1], "size": 299, "resize": "bilinear, antialias"}

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return the output of the last pooling layer (B, 2048).

        Raises:
            MissingWeights: the file does not exist, or torch-fidelity is not installed.
            UserError: the file holds something else.
        """
        pixels = (images.float().cpu() * 255).round().to(torch.uint8)  # the network takes bytes; a plain cast would truncate, not round
        features: Tensor = _load_inception(self.weights)[0](pixels)
        return features


@dataclass(frozen=True, kw_only=True)
class OpenClipFeatures(Extractor):
    """Image embeddings of any open_clip model; the default is pocket's own. The CMMD paper uses ViT-L-14-336."""

    model: str = _open_clip.POCKET_OPEN_CLIP  # an open_clip name, local-dir:FOLDER or hf-hub:ORG/NAME
    pretrained: str = ""  # open_clip tag or weights file, for names

    @property
    def name(self) -> str:
        model = "pocket" if self.model == _open_clip.POCKET_OPEN_CLIP else Path(self.model).name
        return f"open_clip {model} {Path(self.pretrained).name}".strip()

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "weights": _open_clip.load_open_clip(self.model, self.pretrained).weights}

    def features(self, images: Tensor) -> Tensor:
        """Return embeddings of unit length (B, D).

        Raises:
            MissingWeights: the weights are missing.
        """
        return _open_clip.load_open_clip(self.model, self.pretrained).encode_images(images)


EXTRACTORS: dict[str, type[Extractor]] = {"judge": JudgeFeatures, "inception": Inception, "open_clip": OpenClipFeatures}


def make_extractor(spec: ExtractorSpec) -> Extractor:
    """Return the extractor that a suite asks for.

    Raises:
        UserError: there is no such extractor, or it has no such field or not with such a value.
    """
    if spec.extractor not in EXTRACTORS:
        raise unknown_value_error("extractor", spec.extractor, EXTRACTORS)
    return build_dataclass(EXTRACTORS[spec.extractor], spec.fields, f"extractor {spec.extractor}")


@cache
def _load_inception(weights: Path) -> tuple[nn.Module, str]:
    """Return the network and the hash of its file.

    torch-fidelity unpickles whatever a weights file holds, so the bytes are first loaded with weights_only here.

    Raises:
        MissingWeights: the file does not exist, or torch-fidelity is not installed.
        UserError: the file holds something else.
    """
    if not weights.is_file():
        raise MissingWeights("Inception weights", str(weights), "give the file weights-inception-2015-12-05-6726825d.pth of torch-fidelity")
    content = weights.read_bytes()
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], io.BytesIO(content))  # type: ignore[arg-type]  # torch.load reads it
    except ModuleNotFoundError as error:
        raise MissingWeights("torch-fidelity", "the package", "pip install 'erasure-studio[fid]', or use another extractor") from error
    except (UnpicklingError, RuntimeError, EOFError, TypeError) as error:
        raise UserError(f"{weights} holds no weights of torch-fidelity's Inception; a .pth file of plain tensors is allowed.") from error
    return network, hashlib.sha256(content).hexdigest()
