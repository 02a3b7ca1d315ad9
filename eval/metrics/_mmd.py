"""What KID and CMMD share: the unbiased squared maximum mean discrepancy, in blocks, with a bootstrap over pictures."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from erasure.errors import UserError
from eval.statistics import Interval

Pairs = Literal["none", "included", "excluded"]
Kernel = Callable[[Tensor, Tensor], Tensor]  # (n, d), (m, d) to (n, m)


def discrepancy(a: list[Tensor], b: list[Tensor], kernel: Kernel, *, pairs: Pairs, resamples: int, seed: int, block: int) -> Interval:
    """MMD^2 = mean_{i!=j} k(a_i, a_j) + mean_{i!=j} k(b_i, b_j) - 2 mean k(a_i, b_j) with its 95 % percentile interval.

    The U-statistic of Gretton et al. (JMLR 13, 2012), lemma 6: unbiased, so it can be negative. A resample counts picture i u_i times and
    leaves out i against itself as well, so it is unbiased too; with copies of a picture against each other it would be too high. Where both
    sides are alike the interval is wider than it need be, as the bootstrap of a degenerate U-statistic is.

    Args:
        a, b: batches of features (N, d).
        pairs: "none": the sides are independent. Otherwise a_i and b_i are made from one noise, and the bootstrap draws pairs.
            "included": the usual value, whose last mean takes a_i against b_i too; as they depend on each other it is biased, and below
            zero where little changed. "excluded": the last mean leaves them out (the h-statistic of the same lemma): unbiased.
        resamples: of the bootstrap; whole pictures are drawn, whatever prompt they share.
        block: rows of the kernel matrix held at once; changes nothing but memory.

    Raises:
        UserError: fewer than two features on a side, or sides of different length called pairs.
    """
    paired = pairs != "none"
    x, y = (dim_zero_cat(side).double() if len(side) else torch.empty(0, 1) for side in (a, b))
    if min(len(x), len(y)) < 2 or (paired and len(x) != len(y)):
        raise UserError(f"a kernel distance needs two pictures on either side, and as many on both if paired; got {len(x)} and {len(y)}.")
    # in an order of their own, so that the bootstrap is the same whatever order pictures came in
    order = x.sum(1).argsort(stable=True)
    x, y = x[order], y[order if paired else y.sum(1).argsort(stable=True)]
    generator = torch.Generator().manual_seed(seed)
    u = _weights(len(x), resamples, generator).to(x)
    v = u if paired else _weights(len(y), resamples, generator).to(x)
    within = [_mean(kernel, z, z, w, w, apart=True, block=block) for z, w in ((x, u), (y, v))]
    found = within[0] + within[1] - 2 * _mean(kernel, x, y, u, v, apart=pairs == "excluded", block=block)
    drawn = found[1:].nanquantile(torch.tensor([0.025, 0.975]).to(found))  # a resample of one picture alone has no pairs
    return Interval(found[0].item(), *drawn.tolist())


def _weights(n: int, resamples: int, generator: torch.Generator) -> Tensor:
    """How often each picture counts, (1 + resamples, n): once, then as drawn with replacement."""
    drawn = torch.randint(n, (resamples, n), generator=generator)
    counts = torch.zeros(resamples, n, dtype=torch.double).scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.double))
    return torch.cat((torch.ones(1, n, dtype=torch.double), counts))


def _mean(kernel: Kernel, x: Tensor, y: Tensor, u: Tensor, v: Tensor, apart: bool, block: int) -> Tensor:
    """Mean of k(x_i, y_j) under counts u_i v_j, one for each row of counts; `apart` leaves out i = j."""
    total = torch.zeros(len(u)).to(x)
    for start in range(0, len(x), block):
        values = kernel(x[start : start + block], y)
        if apart:
            values.diagonal(start).zero_()
        total += ((u[:, start : start + block] @ values) * v).sum(1)
    return total / (u.sum(1) * v.sum(1) - ((u * v).sum(1) if apart else 0))
