"""The number of images behind each rate in every tier of a suite, by which an undecided gate suggests what to run next."""

from collections import Counter
from collections.abc import Sequence

from eval.suites.axes import Axis, cross_axis
from eval.suites.cases import PLAIN_ROLES, REPHRASED_ROLES, Case
from eval.suites.fine_grained import is_erasure_target
from eval.suites.formats import Suite

SampleSizes = dict[str, dict[str, int]]  # tier -> rate -> images (UA_attacked: prompts) of one model


def count_sample_sizes(
    suite: Suite, axis: Axis, targets: Sequence[str], only: str, cases_by_tier: dict[str, Sequence[Case]]
) -> SampleSizes:
    """Count images by tier and rate, without generating any; equal to the n that eval.scoring.counting finds. Empty rates are left out.

    Args:
        only: label of the other axis if the targets should be erased on it alone.
        cases_by_tier: the cases that an audit of each tier generates.
    """
    return {tier: _tier_sample_sizes(suite, axis, targets, only, tier, tier_cases) for tier, tier_cases in cases_by_tier.items()}


def _tier_sample_sizes(suite: Suite, axis: Axis, targets: Sequence[str], only: str, tier: str, cases: Sequence[Case]) -> dict[str, int]:
    cross, sizes_by_rate = cross_axis(axis), Counter[str]()
    for case in cases:
        labels = vars(case)
        erased, cross_counts = is_erasure_target(labels, axis, targets, only), labels[cross] not in suite.excluded
        counted_in = {
            "UA": case.role in PLAIN_ROLES and erased,
            "FR": case.role == "grid" and labels[axis] in targets and not erased,
            "IRA": case.role == "grid" and labels[axis] not in (*targets, *suite.excluded),
            "CRA": case.role == "grid" and not erased and cross_counts,
            "IPA": case.role == "grid" and erased and cross_counts,
            "NRA": case.role == "neighbor",
            **{f"UA_{role}": case.role == role for role in REPHRASED_ROLES},
        }
        sizes_by_rate.update({name: case.count for name, counted in counted_in.items() if counted})
    if suite.attacks.use and tier in suite.attacks.tiers:
        attackable = sum(
            c.count for c in cases if c.role in (*PLAIN_ROLES, "named", "described") and is_erasure_target(vars(c), axis, targets, only)
        )
        sizes_by_rate["UA_attacked"] = min(suite.attacks.prompts, attackable)
    return dict(sizes_by_rate)
