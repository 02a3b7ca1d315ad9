"""The network of pocket's judges: which style or which object an image shows, or none that it knows."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from erasure.pocket.canvas import OBJECTS, STYLES

LABELS: dict[str, tuple[str, ...]] = {"style": (*STYLES, "none"), "object": (*OBJECTS, "none")}


class PocketClassifier(nn.Module):
    """A small residual network: images (B, 3, 64, 64) in [0, 1] to logits (B, labels)."""

    def __init__(self, labels: int, widths: tuple[int, ...] = (32, 64, 96, 128)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 5, 2, 2)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(ResidualBlock(w) for w in widths)
        self.head = nn.Linear(widths[-1], labels)

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features (B, 128)."""
        x: Tensor = self.blocks[0](self.stem(images * 2 - 1))
        for down, block in zip(self.downs, self.blocks[1:], strict=True):
            x = block(down(x))
        return x.amax((2, 3)) / 2 + x.mean((2, 3)) / 2

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, labels) of images (B, 3, H, W) in [0, 1]."""
        logits: Tensor = self.head(self.features(images))
        return logits


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.norm = nn.GroupNorm(8, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(torch.relu(self.norm(x))))))
