"""CLIP cosine of image and prompt, mean and t interval over prompts (Hessel et al., arXiv:2104.08718, without the 2.5 scale)."""

from math import sqrt

import torch
from torch import Tensor
from torchmetrics import Metric

from eval.stats.intervals import Interval, student_t


class ClipAlignment(Metric):
    """Mean of cosines (times 100) over prompts, each the mean over the prompt's images, as an open_clip judge scores them."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "squares", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")

    def update(self, cosines: Tensor) -> None:
        """Add cosines (N,), one per prompt."""
        self.total += cosines.double().sum()
        self.squares += cosines.double().square().sum()
        self.count += cosines.numel()

    def compute(self) -> Interval:
        """Return the mean and its 95% t interval; needs at least two prompts."""
        n = int(self.count)
        mean = (self.total / n).item()
        half_width = student_t(n - 1) * sqrt(max((self.squares / n).item() - mean**2, 0.0) / (n - 1))
        return Interval(mean, mean - half_width, mean + half_width)
