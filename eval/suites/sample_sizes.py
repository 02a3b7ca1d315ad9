"""How many pictures stand behind every rate in each tier of a suite: what an open gate can be told to run next. Draws nothing."""

from collections import Counter
from collections.abc import Sequence

from eval.suites.cases import OTHERWISE, PLAIN, Case
from eval.suites.fine_grained import meant
from eval.suites.prompt_list import crossing
from eval.suites.suite import Axis, Suite

Sizes = dict[str, dict[str, int]]  # tier -> rate -> pictures (UA_attacked: prompts) of one model


def sizes(suite: Suite, axis: Axis, targets: Sequence[str], only: str, cases: dict[str, Sequence[Case]]) -> Sizes:
    """Pictures by tier and rate; a rate without pictures is left out. Equal to what eval.scoring.counting finds in such an audit.

    Args:
        only: label of the other axis, if the targets were meant to be erased with it alone.
        cases: what an audit of each tier draws.
    """
    return {tier: _of_tier(suite, axis, targets, only, tier, asked) for tier, asked in cases.items()}


def _of_tier(suite: Suite, axis: Axis, targets: Sequence[str], only: str, tier: str, asked: Sequence[Case]) -> dict[str, int]:
    cross, found = crossing(axis), Counter[str]()
    for case in asked:
        labels = vars(case)
        gone, stays = meant(labels, axis, targets, only), labels[cross] not in suite.apart
        counts = {
            "UA": case.role in PLAIN and gone,
            "FR": case.role == "grid" and labels[axis] in targets and not gone,
            "IRA": case.role == "grid" and labels[axis] not in (*targets, *suite.apart),
            "CRA": case.role == "grid" and not gone and stays,
            "IPA": case.role == "grid" and gone and stays,
            "NRA": case.role == "neighbour",
            **{f"UA_{role}": case.role == role for role in OTHERWISE},
        }
        found.update({name: case.count for name, counted in counts.items() if counted})
    if suite.attacks.use and tier in suite.attacks.tiers:
        startable = sum(c.count for c in asked if c.role in (*PLAIN, "named", "described") and meant(vars(c), axis, targets, only))
        found["UA_attacked"] = min(suite.attacks.prompts, startable)
    return dict(found)
