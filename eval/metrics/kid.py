"""Kernel distance of two sets of features, KID when they are Inception's (Bińkowski et al., arXiv:1801.01401)."""

from torch import Tensor
from torchmetrics import Metric

from eval.metrics._mmd import PairHandling, squared_mmd
from eval.stats.intervals import Interval


class KID(Metric):
    """Unbiased MMD^2 of the kernel (x.y / d + 1)^3 over all features at once, where the paper averages over subsets.

    Args:
        pairs: whether feature i of both sides belongs to one prompt and one noise, and whether such pairs count (eval.metrics._mmd).
        block: rows of the kernel matrix held at once.
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
        """The distance and its 95 % interval, by jackknife over pictures.

        Raises:
            UserError: fewer than three features on a side, or sides of different length called pairs.
        """
        return squared_mmd(self.first, self.second, cubic_kernel, pairs=self.pairs, block=self.block)


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / d + 1)^3 for all pairs (n, m)."""
    return (x @ y.T / x.shape[1] + 1) ** 3
