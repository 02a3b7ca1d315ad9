"""Kernel distance of two sets of features, KID when they are Inception's (Bińkowski et al., arXiv:1801.01401)."""

from torch import Tensor
from torchmetrics import Metric

from eval.metrics._mmd import PairHandling, squared_mmd
from eval.stats.intervals import Interval


class KID(Metric):
    """Unbiased MMD^2 of the kernel (x.y / d + 1)^3 over all features at once, where the paper averages over subsets.

    Args:
        pairs: whether feature i of both sides comes from the same prompt and noise, and whether such pairs count (eval.metrics._mmd).
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
        """Add features (N, d) of one side; with pairs, both sides in the same order."""
        (self.first if real else self.second).append(features)

    def compute(self) -> Interval:
        """Return the distance and its 95% interval, by jackknife over images.

        Raises:
            UserError: a side has fewer than three features, or paired sides differ in length.
        """
        return squared_mmd(self.first, self.second, cubic_kernel, pairs=self.pairs, block=self.block)


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return (x.y / d + 1)^3 for all pairs (n, m) of x (n, d) and y (m, d)."""
    return (x @ y.T / x.shape[1] + 1) ** 3
