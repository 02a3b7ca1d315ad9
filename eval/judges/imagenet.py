"""ImageNet classifier: torchvision's ResNet-50, V2 weights, which judges objects in ESD (arXiv:2303.07345) and SalUn (arXiv:2310.12508)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50

from eval.judges._classifier import filled, readings, sha256
from eval.judges.base import Judge, MissingWeights

V2 = ResNet50_Weights.IMAGENET1K_V2
FILE = Path(V2.url).name
LABELS: tuple[str, ...] = tuple(V2.meta["categories"])  # "crane" and "maillot" each name two classes


@dataclass(frozen=True, kw_only=True)
class ImageNet(Judge):
    """Reads {"label", "p", "top5"} among ImageNet's 1,000 classes, top-1; nothing is ever "none".

    Papers that use another ResNet-50 (such as microsoft/resnet-50) cut and weigh pictures otherwise: their figures are not comparable.
    """

    optional: ClassVar[bool] = True

    weights: str = ""  # state dict as .pth or .safetensors; empty: torchvision's file in torch's hub folder

    def identity(self) -> dict[str, Any]:
        return {
            "network": "resnet50",
            "weights": _load(self._path())[1],
            "labels": "torchvision IMAGENET1K",
            "preprocess": " ".join(str(V2.transforms()).split()),
        }

    def answers(self) -> Sequence[str]:
        return LABELS

    @torch.no_grad()
    def read(self, images: Tensor, prompts: Sequence[str]) -> list[dict[str, Any]]:
        network, _ = _load(self._path())
        return readings(network(V2.transforms()(images.float().cpu())), LABELS)

    def _path(self) -> Path:
        path = Path(self.weights).expanduser() if self.weights else Path(torch.hub.get_dir()) / "checkpoints" / FILE
        if not path.is_file():
            raise MissingWeights("weights of torchvision's ResNet-50", str(path), f"download {V2.url} and put it there, or give its path")
        return path


@cache
def _load(path: Path) -> tuple[nn.Module, str]:
    return filled(resnet50, path), sha256(path)
