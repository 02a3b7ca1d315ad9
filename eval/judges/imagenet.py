"""ImageNet classifier: torchvision's ResNet-50, V2 weights, the judge of objects in ESD (arXiv:2303.07345) and SalUn (arXiv:2310.12508)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50

from eval.judges._classifier import file_sha256, load_network, top5_scores
from eval.judges.base import Judge, MissingWeights
from eval.records.scores import LabelScore

WEIGHTS = ResNet50_Weights.IMAGENET1K_V2
WEIGHTS_FILE = Path(WEIGHTS.url).name
LABELS: tuple[str, ...] = tuple(WEIGHTS.meta["categories"])  # "crane" and "maillot" each name two classes


@dataclass(frozen=True, kw_only=True)
class ImageNet(Judge):
    """Labels images with one of ImageNet's 1,000 classes, top-1; never "none".

    Papers with another ResNet-50 (such as microsoft/resnet-50) use other crops and weights, so their figures are not comparable.
    """

    optional: ClassVar[bool] = True

    weights: str = ""  # state dict as .pth or .safetensors; empty: torchvision's file in torch's hub folder

    def identity(self) -> dict[str, Any]:
        return {
            "network": "resnet50",
            "weights": _load_resnet(self._path())[1],
            "labels": "torchvision IMAGENET1K",
            "preprocess": " ".join(str(WEIGHTS.transforms()).split()),
        }

    def possible_labels(self) -> Sequence[str]:
        return LABELS

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> list[LabelScore]:
        network, _ = _load_resnet(self._path())
        return top5_scores(network(WEIGHTS.transforms()(images.float().cpu())), LABELS)

    def _path(self) -> Path:
        path = Path(self.weights).expanduser() if self.weights else Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_FILE
        if not path.is_file():
            raise MissingWeights(
                "weights of torchvision's ResNet-50", str(path), f"download {WEIGHTS.url} and put it there, or give its path"
            )
        return path


@cache
def _load_resnet(path: Path) -> tuple[nn.Module, str]:
    return load_network(resnet50, path), file_sha256(path)
