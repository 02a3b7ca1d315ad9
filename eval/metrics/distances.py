"""How far the erased model's images are from the base's, next to how far the base's are from each other.

Every distance of finite samples depends on their number and on the extractor, so each is recorded with both, and next to the base compared
with itself, on halves that share no image.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

from erasure.errors import UserError
from eval.metrics._mmd import MIN_IMAGES, PairHandling
from eval.metrics.cmmd import CMMD
from eval.metrics.fid import FID
from eval.metrics.kid import KID
from eval.records.distances import ComparedSets, DistributionDistance, DistributionDistances


def feature_distances(base: Tensor, erased: Tensor, extractor: str, *, paired: bool = True, seed: int = 0) -> DistributionDistances:
    """Measure FID, KID and CMMD in three comparisons; KID and CMMD of pairs in a fourth.

    "all": every base image against every erased one, which is what these names mean elsewhere. "different_noise": the same without the
    pairs from the same noise. "base_halves": half A of the base against its half B. "erased_halves": half A of the base against half B of
    the erased model. The last two have the same n, and neither compares images from the same noise, so their difference is what erasing
    did; a difference of FIDs smaller than "base_halves" means nothing. `seed` decides the halves.

    Args:
        base, erased: features (N, d) and (M, d) of the same extractor.
        extractor: its name, for the record.
        paired: row i of both comes from the same prompt and noise. Then "all" is closer to zero than for unpaired images, or below it, and
            the intervals of KID and CMMD are those of pairs. FID cannot leave such pairs out.

    Raises:
        UserError: the widths differ, or paired sides differ in number.
    """
    if base.shape[1:] != erased.shape[1:] or (paired and len(base) != len(erased)):
        raise UserError(
            f"features must have one width, and be as many on both sides if paired; got {tuple(base.shape)} and {tuple(erased.shape)}."
        )
    half = min(len(base), len(erased)) // 2
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(base), generator=generator)
    erased_order = order if paired else torch.randperm(len(erased), generator=generator)
    base_half, base_other_half, erased_half = base[order[:half]], base[order[half : 2 * half]], erased[erased_order[half : 2 * half]]
    width = base.shape[1]

    def compare(make_metric: Callable[[PairHandling], Metric], leaves_out_pairs: bool) -> ComparedSets:
        def measure(pairs: PairHandling, a: Tensor, b: Tensor) -> DistributionDistance:
            return _measure(make_metric(pairs), a, b, extractor)

        return ComparedSets(
            all=measure("included" if paired else "none", base, erased),
            base_halves=measure("none", base_half, base_other_half),
            erased_halves=measure("none", base_half, erased_half),
            different_noise=measure("excluded", base, erased) if paired and leaves_out_pairs else None,
        )

    return DistributionDistances(fid=compare(lambda _: FID(width), False), kid=compare(KID, True), cmmd=compare(CMMD, True))


def _measure(metric: Metric, a: Tensor, b: Tensor, extractor: str) -> DistributionDistance:
    minimum, minimum_in_words = (2, "two") if isinstance(metric, FID) else (MIN_IMAGES, "three")
    value, low, high, reason = None, None, None, None
    if min(len(a), len(b)) < minimum:
        reason = f"fewer than {minimum_in_words} images on a side"
    else:
        metric.update(a, True)
        metric.update(b, False)
        value, low, high = (metric.compute().item(), None, None) if isinstance(metric, FID) else metric.compute()
    return DistributionDistance(
        value=_round_to_six_digits(value),
        low=_round_to_six_digits(low),
        high=_round_to_six_digits(high),
        reason=reason,
        n=(len(a), len(b)),
        extractor=extractor,
        width=a.shape[1],
    )


def _round_to_six_digits(value: float | None) -> float | None:
    """Round to six significant digits, so that a number prints the same whatever the order of summation."""
    return None if value is None else float(f"{value:.6g}")
