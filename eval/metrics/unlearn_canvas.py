"""UA, IRA and CRA with the confusion matrix behind them (UnlearnCanvas: Zhang et al., arXiv:2402.11846)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


class RateCount(NamedTuple):
    """A counted rate."""

    k: int
    n: int


class UnlearnCanvasRates(Metric):
    """Counts readings of pictures prompted from a grid of two axes.

    Let the target t lie on one axis, its own; the other is the cross axis.
    UA  = share of pictures prompted with t that are not read as t.
    IRA = share of pictures prompted with another label of the own axis that are read as that label.
    CRA = share of pictures read as prompted on the cross axis. "excluded" leaves pictures prompted with t out, as the benchmark's
    README says; "included" keeps them, as its script does.
    IPA = share of pictures prompted with t that are read as prompted on the cross axis: whether the rest of the sentence survives where the
    concept goes (in-prompt preservation, after Six-CD, CVPR 2025, which asks CLIP and not a judge).

    With `only`, a label of the cross axis, t was meant to be erased in the cell (t, only) alone (version 2 of the paper, finer-scale
    unlearning). UA and IPA then count that cell, IRA stays, CRA leaves out that cell in place of all of t's, because t's other cells should
    stay as they are on both axes, and
    FR  = share of pictures prompted with t and another label of the cross axis that are still read as t.

    Args:
        own: labels of the target's axis, with "none" last.
        cross: labels of the other axis, with "none" last.
        targets: labels that were erased.
        apart: labels of either axis that count in no rate of kept styles.
        only: label of the cross axis with which alone the targets were meant to be erased; empty for all.

    Raises:
        ValueError: `only` is no label of the cross axis.
    """

    full_state_update = False
    higher_is_better = None  # rates, all better when higher
    counts: Tensor
    cell: Tensor
    elsewhere: Tensor

    def __init__(
        self, own_labels: Sequence[str], cross_labels: Sequence[str], targets: Sequence[str], excluded: Sequence[str] = (), only: str = ""
    ) -> None:
        super().__init__()
        self.own_labels, self.cross_labels, self.targets, self.excluded = (
            list(own_labels),
            list(cross_labels),
            list(targets),
            list(excluded),
        )
        is_target = torch.tensor([label in targets for label in own_labels])
        is_in_only = (
            torch.arange(len(cross_labels)) == self.cross_labels.index(only) if only else torch.ones(len(cross_labels), dtype=torch.bool)
        )
        # of prompts: what should be gone, and the concept where it should stay
        self.register_buffer("cell", is_target[:, None] & is_in_only, persistent=False)
        self.register_buffer("elsewhere", is_target[:, None] & ~is_in_only, persistent=False)
        shape = (len(own_labels), len(cross_labels), len(own_labels), len(cross_labels))  # prompted own, cross; read own, cross
        self.add_state("counts", torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prompted: Sequence[tuple[str, str]], read: Sequence[tuple[str, str]]) -> None:
        """Add pictures: (own, cross) labels as prompted and as read.

        Raises:
            ValueError: a label the metric was not built with, or lists of different length.
        """
        for (a, b), (c, d) in zip(prompted, read, strict=True):
            self.counts[self.own_labels.index(a), self.cross_labels.index(b), self.own_labels.index(c), self.cross_labels.index(d)] += 1

    def compute(self) -> dict[str, RateCount]:
        """UA, IPA, FR, IRA, CRA and CRA_included; a rate without pictures is left out."""
        rates = {"UA": self._count_ua(), "IPA": self._count_cross(self.cell), "FR": self._count_fr(), "IRA": self._count_ira()}
        rates |= {"CRA": self._count_cross(~self.cell), "CRA_included": self._count_cross(torch.ones_like(self.cell))}
        return {name: rate for name, rate in rates.items() if rate.n}

    def confusion(self) -> Tensor:
        """Prompted against read on the own axis, (len(own), len(own)): what took the concept's place, where it should be gone."""
        return (self.counts.sum(3) * ~self.elsewhere[..., None]).sum(1)

    def _count_ua(self) -> RateCount:
        matrix = self.confusion()
        rows = [self.own_labels.index(t) for t in self.targets]
        n = int(matrix[rows].sum())
        return RateCount(n - sum(int(matrix[i, i]) for i in rows), n)

    def _count_fr(self) -> RateCount:
        matrix = (self.counts.sum(3) * self.elsewhere[..., None]).sum(1)
        return RateCount(int(matrix.trace()), int(matrix.sum()))

    def _count_ira(self) -> RateCount:
        matrix = self.confusion()
        rows = [i for i, label in enumerate(self.own_labels) if label not in self.targets and label not in self.excluded]
        return RateCount(sum(int(matrix[i, i]) for i in rows), int(matrix[rows].sum()))

    def _count_cross(self, cells: Tensor) -> RateCount:
        """Read as prompted on the cross axis, of pictures prompted with the cells (len(own), len(cross)) that count."""
        columns = [j for j, label in enumerate(self.cross_labels) if label not in self.excluded]
        matrix = (self.counts.sum(2) * cells[..., None]).sum(0)
        return RateCount(sum(int(matrix[j, j]) for j in columns), int(matrix[columns].sum()))
