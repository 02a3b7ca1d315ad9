"""UA, IRA and CRA with the confusion matrix behind them (UnlearnCanvas: Zhang et al., arXiv:2402.11846)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


class Rate(NamedTuple):
    """A counted rate."""

    k: int
    n: int


class UnlearnCanvas(Metric):
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

    def __init__(self, own: Sequence[str], cross: Sequence[str], targets: Sequence[str], apart: Sequence[str] = (), only: str = "") -> None:
        super().__init__()
        self.own, self.cross, self.targets, self.apart = list(own), list(cross), list(targets), list(apart)
        target = torch.tensor([label in targets for label in own])
        here = torch.arange(len(cross)) == self.cross.index(only) if only else torch.ones(len(cross), dtype=torch.bool)
        # of prompts: what should be gone, and the concept where it should stay
        self.register_buffer("cell", target[:, None] & here, persistent=False)
        self.register_buffer("elsewhere", target[:, None] & ~here, persistent=False)
        shape = (len(own), len(cross), len(own), len(cross))  # prompted own, cross; read own, cross
        self.add_state("counts", torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prompted: Sequence[tuple[str, str]], read: Sequence[tuple[str, str]]) -> None:
        """Add pictures: (own, cross) labels as prompted and as read.

        Raises:
            ValueError: a label the metric was not built with, or lists of different length.
        """
        for (a, b), (c, d) in zip(prompted, read, strict=True):
            self.counts[self.own.index(a), self.cross.index(b), self.own.index(c), self.cross.index(d)] += 1

    def compute(self) -> dict[str, Rate]:
        """UA, IPA, FR, IRA, CRA and CRA_included; a rate without pictures is left out."""
        rates = {"UA": self._ua(), "IPA": self._cross(self.cell), "FR": self._fr(), "IRA": self._ira()}
        rates |= {"CRA": self._cross(~self.cell), "CRA_included": self._cross(torch.ones_like(self.cell))}
        return {name: rate for name, rate in rates.items() if rate.n}

    def confusion(self) -> Tensor:
        """Prompted against read on the own axis, (len(own), len(own)): what took the concept's place, where it should be gone."""
        return (self.counts.sum(3) * ~self.elsewhere[..., None]).sum(1)

    def _ua(self) -> Rate:
        matrix = self.confusion()
        rows = [self.own.index(t) for t in self.targets]
        n = int(matrix[rows].sum())
        return Rate(n - sum(int(matrix[i, i]) for i in rows), n)

    def _fr(self) -> Rate:
        matrix = (self.counts.sum(3) * self.elsewhere[..., None]).sum(1)
        return Rate(int(matrix.trace()), int(matrix.sum()))

    def _ira(self) -> Rate:
        matrix = self.confusion()
        rows = [i for i, label in enumerate(self.own) if label not in self.targets and label not in self.apart]
        return Rate(sum(int(matrix[i, i]) for i in rows), int(matrix[rows].sum()))

    def _cross(self, counted: Tensor) -> Rate:
        """Read as prompted on the cross axis, of pictures prompted with the cells (len(own), len(cross)) that count."""
        columns = [j for j, label in enumerate(self.cross) if label not in self.apart]
        matrix = (self.counts.sum(2) * counted[..., None]).sum(0)
        return Rate(sum(int(matrix[j, j]) for j in columns), int(matrix[columns].sum()))
