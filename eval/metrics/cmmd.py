"""CMMD, the maximum mean discrepancy of CLIP embeddings (Jayasumana et al., arXiv:2401.09603), in its unbiased form."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from eval.metrics._mmd import PairHandling, squared_mmd
from eval.stats.intervals import Interval

SIGMA = 10.0  # section 4 of the paper
SCALE = 1000.0


class CMMD(Metric):
    """1000 MMD^2 of the kernel exp(-|x - y|^2 / (2 10^2)) over L2-normalized embeddings.

    The paper's value includes i = j and is at least 0; this one leaves it out, is unbiased at any n, and can be negative.

    Args:
        pairs: whether embedding i of both sides comes from the same prompt and noise, and whether such pairs count (eval.metrics._mmd).
        block: rows of the kernel matrix held in memory at once.
    """

    full_state_update = False
    higher_is_better = False
    first: list[Tensor]
    second: list[Tensor]

    def __init__(self, pairs: PairHandling = "none", block: int = 1024) -> None:
        super().__init__()
        self.pairs, self.block = pairs, block
        for name in ("first", "second"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool) -> None:
        """Add embeddings (N, d) of one side; with pairs, both sides in the same order."""
        (self.first if real else self.second).append(F.normalize(features.double(), dim=-1))

    def compute(self) -> Interval:
        """Return the distance and its 95% interval, by jackknife over images.

        Raises:
            UserError: a side has fewer than three embeddings, or paired sides differ in length.
        """
        interval = squared_mmd(self.first, self.second, gaussian_kernel, pairs=self.pairs, block=self.block)
        return Interval(*(SCALE * value for value in interval))


def gaussian_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return exp(-|x - y|^2 / (2 sigma^2)) for all pairs (n, m) of x (n, d) and y (m, d)."""
    squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return torch.exp(-squared / (2 * SIGMA**2))
