"""UA, IRA and CRA with the confusion matrix behind them (UnlearnCanvas: Zhang et al., arXiv:2402.11846)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from eval.records.rates import RateName


class RateCount(NamedTuple):
    """k of n."""

    k: int
    n: int


class UnlearnCanvasRates(Metric):
    """Counts judge labels of images prompted from a grid of two axes.

    The target t is a label of one axis, its own; the other is the cross axis.
    UA  = share of images prompted with t that the judge does not label t.
    IRA = share of images prompted with another label of the own axis that the judge labels as prompted.
    CRA = share of images labeled as prompted on the cross axis, without images prompted with t, as the benchmark's README says;
    CRA_included counts those too, as its script does.
    IPA = share of images prompted with t that are labeled as prompted on the cross axis: whether the rest of the prompt survives the
    erasure (in-prompt preservation, after Six-CD, CVPR 2025, which uses CLIP instead of a judge).

    With `only`, a label of the cross axis, t was meant to be erased in the cell (t, only) alone (version 2 of the paper, finer-scale
    unlearning). UA and IPA then count that cell, IRA stays the same, CRA leaves out that cell instead of all of t's, because t's other
    cells should be retained on both axes, and
    FR  = share of images prompted with t and another label of the cross axis that are still labeled t.

    Args:
        own_labels: labels of the target's axis, with "none" last.
        cross_labels: labels of the other axis, with "none" last.
        targets: labels that were erased.
        excluded: labels of either axis that count in no rate of retained labels.
        only: the label of the cross axis with which alone the targets were meant to be erased; empty for all.

    Raises:
        ValueError: `only` is not a label of the cross axis.
    """

    full_state_update = False
    higher_is_better = None  # rates, all better when higher
    counts: Tensor
    target_cells: Tensor
    elsewhere_cells: Tensor

    def __init__(
        self, own_labels: Sequence[str], cross_labels: Sequence[str], targets: Sequence[str], excluded: Sequence[str] = (), only: str = ""
    ) -> None:
        super().__init__()
        self.own_labels, self.cross_labels = list(own_labels), list(cross_labels)
        self.targets, self.excluded = list(targets), list(excluded)
        is_target = torch.tensor([label in targets for label in own_labels])
        is_in_only = (
            torch.arange(len(cross_labels)) == self.cross_labels.index(only) if only else torch.ones(len(cross_labels), dtype=torch.bool)
        )
        # cells whose prompts ask for what should be erased, and for the concept where it should be retained
        self.register_buffer("target_cells", is_target[:, None] & is_in_only, persistent=False)
        self.register_buffer("elsewhere_cells", is_target[:, None] & ~is_in_only, persistent=False)
        shape = (len(own_labels), len(cross_labels), len(own_labels), len(cross_labels))  # prompted own, cross; labeled own, cross
        self.add_state("counts", torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prompted: Sequence[tuple[str, str]], labeled: Sequence[tuple[str, str]]) -> None:
        """Add images: (own, cross) labels as prompted and as the judge says.

        Raises:
            ValueError: the metric does not have a label, or the lists differ in length.
        """
        for (a, b), (c, d) in zip(prompted, labeled, strict=True):
            self.counts[self.own_labels.index(a), self.cross_labels.index(b), self.own_labels.index(c), self.cross_labels.index(d)] += 1

    def compute(self) -> dict[RateName, RateCount]:
        """Return UA, IPA, FR, IRA, CRA and CRA_included; rates without images are left out."""
        rates = {
            RateName.UA: self._count_ua(),
            RateName.IPA: self._count_cross(self.target_cells),
            RateName.FR: self._count_fr(),
            RateName.IRA: self._count_ira(),
            RateName.CRA: self._count_cross(~self.target_cells),
            RateName.CRA_INCLUDED: self._count_cross(torch.ones_like(self.target_cells)),
        }
        return {name: rate for name, rate in rates.items() if rate.n}

    def confusion(self) -> Tensor:
        """Return counts (own, own), int64, prompted by labeled on the own axis: what replaced the concept where it was to be erased."""
        return (self.counts.sum(3) * ~self.elsewhere_cells[..., None]).sum(1)

    def _count_ua(self) -> RateCount:
        matrix = self.confusion()
        rows = [self.own_labels.index(t) for t in self.targets]
        n = int(matrix[rows].sum())
        return RateCount(n - sum(int(matrix[i, i]) for i in rows), n)

    def _count_fr(self) -> RateCount:
        matrix = (self.counts.sum(3) * self.elsewhere_cells[..., None]).sum(1)
        return RateCount(int(matrix.trace()), int(matrix.sum()))

    def _count_ira(self) -> RateCount:
        matrix = self.confusion()
        rows = [i for i, label in enumerate(self.own_labels) if label not in self.targets and label not in self.excluded]
        return RateCount(sum(int(matrix[i, i]) for i in rows), int(matrix[rows].sum()))

    def _count_cross(self, cells: Tensor) -> RateCount:
        """Count images labeled as prompted on the cross axis, of those prompted with `cells`, bool (own, cross)."""
        columns = [j for j, label in enumerate(self.cross_labels) if label not in self.excluded]
        matrix = (self.counts.sum(2) * cells[..., None]).sum(0)
        return RateCount(sum(int(matrix[j, j]) for j in columns), int(matrix[columns].sum()))
