"""What KID and CMMD share: the unbiased squared maximum mean discrepancy, computed in blocks, with a jackknife interval."""

from collections.abc import Callable
from math import sqrt
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from erasure.errors import UserError
from eval.stats.intervals import Interval, jackknife_variance, student_t

PairHandling = Literal["none", "included", "excluded"]
Kernel = Callable[[Tensor, Tensor], Tensor]  # (n, d), (m, d) to (n, m)
MIN_IMAGES = 3  # images per side: with two, leaving one out leaves no pairs


class KernelSums(NamedTuple):
    """Sums of a kernel matrix (n, m) by row (n,) and by column (m,), and its diagonal, which is empty for independent sides."""

    rows: Tensor
    columns: Tensor
    diagonal: Tensor

    def leave_one_out(self) -> Tensor:
        """Return the sum of the matrix without row i and column i, for every i."""
        return self.rows.sum() - self.rows - self.columns + self.diagonal


def squared_mmd(a: list[Tensor], b: list[Tensor], kernel: Kernel, *, pairs: PairHandling, block: int) -> Interval:
    """Return MMD^2 = mean_{i!=j} k(a_i, a_j) + mean_{i!=j} k(b_i, b_j) - 2 mean k(a_i, b_j) with its 95% interval.

    The U-statistic of Gretton et al. (JMLR 13, 2012), lemma 6: unbiased, so it can be negative. The standard error is the jackknife's
    (Arvesen, 1969): it leaves each image out once, both images of a pair together, and never compares an image with a copy of itself, as a
    bootstrap would. The interval is Student's t around the estimate, so it contains it. If both sides are alike, the interval is wider than
    necessary, since the jackknife errs upwards (Efron and Stein, 1981).

    Args:
        a, b: batches of features (N, d).
        pairs: "none": the sides are independent. Otherwise a_i and b_i come from the same noise and are left out together.
            "included": the usual value, whose last mean compares a_i with b_i too; since they depend on each other it is biased, and below
            zero if little changed; the interval is that of its own expectation. "excluded": the last mean leaves them out (the
            h-statistic of the same lemma): unbiased.
        block: rows of the kernel matrix held in memory at once; the result does not depend on it.

    Raises:
        UserError: a side has fewer than three features, or paired sides differ in length.
    """
    paired = pairs != "none"
    x, y = (dim_zero_cat(side).double() if len(side) else torch.empty(0, 1) for side in (a, b))
    if min(len(x), len(y)) < MIN_IMAGES or (paired and len(x) != len(y)):
        raise UserError(f"a kernel distance needs three images per side, and as many on both if paired; got {len(x)} and {len(y)}.")
    # sorted, so that the sums do not depend on the order of the images
    order = x.sum(1).argsort(stable=True)
    x, y = x[order], y[order if paired else y.sum(1).argsort(stable=True)]
    within_x_sums, within_y_sums = (_kernel_sums(kernel, z, z, "excluded", block) for z in (x, y))
    between_sums = _kernel_sums(kernel, x, y, pairs, block)
    n, m = len(x), len(y)

    def value(within_x: Tensor, within_y: Tensor, between: Tensor, n: int, m: int) -> Tensor:
        counted = n * m - (n if pairs == "excluded" else 0)
        return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / counted

    totals = within_x_sums.rows.sum(), within_y_sums.rows.sum(), between_sums.rows.sum()
    if paired:
        leave_one_out = [value(within_x_sums.leave_one_out(), within_y_sums.leave_one_out(), between_sums.leave_one_out(), n - 1, m - 1)]
    else:
        leave_one_out = [
            value(within_x_sums.leave_one_out(), totals[1], totals[2] - between_sums.rows, n - 1, m),
            value(totals[0], within_y_sums.leave_one_out(), totals[2] - between_sums.columns, n, m - 1),
        ]
    standard_error = sqrt(sum(jackknife_variance(values.tolist()) for values in leave_one_out))
    estimate, half_width = value(*totals, n, m).item(), student_t(min(n, m) - 1) * standard_error
    return Interval(estimate, estimate - half_width, estimate + half_width)


def _kernel_sums(kernel: Kernel, x: Tensor, y: Tensor, pairs: PairHandling, block: int) -> KernelSums:
    """Sum k(x_i, y_j) by row and by column; excluded pairs count as 0."""
    rows, diagonals, columns = [], [], torch.zeros(len(y)).to(x)
    for start in range(0, len(x), block):
        values = kernel(x[start : start + block], y)
        if pairs != "none":
            pair_values = values.diagonal(start)
            diagonals.append(pair_values.zero_() if pairs == "excluded" else pair_values)
        rows.append(values.sum(1))
        columns += values.sum(0)
    return KernelSums(torch.cat(rows), columns, torch.cat(diagonals) if diagonals else torch.empty(0))
