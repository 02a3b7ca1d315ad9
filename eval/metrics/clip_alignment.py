"""Mean CLIP cosine of picture and prompt, with a t interval over prompts (Hessel et al., arXiv:2104.08718, without the 2.5 scale)."""

from math import sqrt

import torch
from torch import Tensor
from torchmetrics import Metric

from eval.statistics import Interval


class ClipAlignment(Metric):
    """Mean of per-picture cosines (times 100), as an open_clip judge reads them."""

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
        """Add cosines (N,)."""
        self.total += cosines.double().sum()
        self.squares += cosines.double().square().sum()
        self.count += cosines.numel()

    def compute(self) -> Interval:
        """Mean and its normal 95 % interval; needs two pictures."""
        n = int(self.count)
        mean = (self.total / n).item()
        spread = 1.959964 * sqrt(max((self.squares / n).item() - mean**2, 0.0) / max(n - 1, 1))
        return Interval(mean, mean - spread, mean + spread)
