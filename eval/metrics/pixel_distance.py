"""How much images changed: mean absolute difference of pixel values, with a normal interval over images."""

from math import sqrt

import torch
from torch import Tensor
from torchmetrics import Metric

from eval.stats.intervals import Interval


class PixelDistance(Metric):
    """Mean over images of mean |a - b|; 0 for equal images, at most 1."""

    full_state_update = False
    higher_is_better = False
    distances: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("distances", [], dist_reduce_fx="cat")

    def update(self, first: Tensor, second: Tensor) -> None:
        """Add pairs of images [B, 3, H, W] in [0, 1]."""
        self.distances.append((first - second).abs().mean((1, 2, 3)).double())

    def compute(self) -> Interval:
        """Return the mean and its 95% interval."""
        values = torch.cat(self.distances)
        half_width = 1.959964 * values.std().item() / sqrt(len(values)) if len(values) > 1 else 0.0
        mean = values.mean().item()
        return Interval(mean, max(mean - half_width, 0.0), mean + half_width)
