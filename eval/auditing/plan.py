"""AuditPlan: what an audit measures, decided from names alone, before anything is generated and before an edit has to exist."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from erasure.edits import Edit
from erasure.errors import UserError
from eval.attack_runs.attack_run import build_attacks, label_of
from eval.generation import Sample, samples_of
from eval.metrics.features import make_extractor
from eval.scoring.counting import AXES
from eval.scoring.gates import Tier
from eval.scoring.judge_scores import build_judges
from eval.suites.axes import Axis, cross_axis
from eval.suites.cases import PLAIN_ROLES, Case, find_tier, suite_cases
from eval.suites.fine_grained import find_only_label, is_erasure_target, restrict_to_cell
from eval.suites.formats import PromptListSuite, Suite, check_has_prompts
from eval.suites.list_reader import ListedPrompt, PromptListOrigin
from eval.suites.sample_sizes import SampleSizes, count_sample_sizes


@dataclass(frozen=True)
class AuditPlan:
    """What an audit measures: a suite, a tier, and the labels of one axis that should be erased. Its samples are computed once."""

    suite: Suite
    tier: Tier
    axis: Axis
    targets: tuple[str, ...]
    also_erased: tuple[str, ...] = ()  # labels of the other axis that the same edits erase; their cells are skipped
    replay_prompts: tuple[ListedPrompt, ...] = ()  # prompts from elsewhere that are claimed to bring the concept back
    only: str = ""  # label of the other axis if the targets should be erased on it alone (eval.suites.fine_grained)
    replay_origin: PromptListOrigin | None = None  # the file that those prompts come from

    @classmethod
    def for_edits(
        cls,
        edits: Sequence[Edit],
        suite: Suite,
        tier: str,
        replay_prompts: Sequence[ListedPrompt] = (),
        only: str = "",
        replay_origin: PromptListOrigin | None = None,
    ) -> list["AuditPlan"]:
        """Return the plans for everything that a stack of edits claims to erase: one for styles, one for objects, or both.

        Raises:
            UserError: see `for_concepts`.
        """
        return cls.for_concepts(concept_names(edits), suite, tier, replay_prompts, only, replay_origin)

    @classmethod
    def for_concepts(
        cls,
        names: Sequence[str],
        suite: Suite,
        tier: str,
        replay_prompts: Sequence[ListedPrompt] = (),
        only: str = "",
        replay_origin: PromptListOrigin | None = None,
    ) -> list["AuditPlan"]:
        """Return the plans for concepts by name; no edit has to exist yet.

        Raises:
            UserError: see `check_buildable` and `make_plans`.
        """
        check_buildable(suite)
        return make_plans(names, suite, tier, replay_prompts, replay_origin, only=only)

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """The cases of the plan's tier."""
        return tuple(self._make_cases(self.tier))

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """All samples of the tier, in the order of generation."""
        return tuple(samples_of(self.suite, self.cases))

    def tier_cases(self, tier: str) -> Sequence[Case]:
        """Return the cases of a tier, without the cells of labels that are also erased."""
        return self.cases if tier == self.tier else self._make_cases(tier)

    def _make_cases(self, tier: str) -> list[Case]:
        cross = cross_axis(self.axis)
        selected = suite_cases(self.suite, [(self.axis, t) for t in self.targets], tier, self.replay_prompts)
        selected = restrict_to_cell(selected, self.suite, self.axis, self.targets, self.only)
        return [case for case in selected if label_of(case, cross) not in self.also_erased]

    @property
    def sample_sizes(self) -> SampleSizes:
        """Number of images behind each rate, for every tier of the suite."""
        return count_sample_sizes(
            self.suite, self.axis, self.targets, self.only, {tier: self.tier_cases(tier) for tier in self.suite.tiers}
        )

    def plain_samples(self, erased: bool) -> list[Sample]:
        """Return the plainly prompted samples that ask for what should be erased, or the others (benign captions if there is no grid)."""
        roles = (*PLAIN_ROLES, "benign") if isinstance(self.suite, PromptListSuite) else PLAIN_ROLES
        return [sample for sample in self.samples if sample.case.role in roles and self.is_target(sample.case) == erased]

    @property
    def retained_samples(self) -> list[Sample]:
        """All samples that do not ask for what should be erased."""
        return [sample for sample in self.samples if not self.is_target(sample.case)]

    @property
    def attackable_samples(self) -> list[Sample]:
        """Samples that attacks may start from: those that ask for a target where it should be erased, or for no target at all."""
        return [s for s in self.samples if self.is_target(s.case) or label_of(s.case, self.axis) not in self.targets]

    def is_target(self, case: Case) -> bool:
        """Return whether a case asks for what should be erased."""
        return is_erasure_target(vars(case), self.axis, self.targets, self.only)


def make_plans(
    names: Sequence[str],
    suite: Suite,
    tier: str,
    replay_prompts: Sequence[ListedPrompt] = (),
    replay_origin: PromptListOrigin | None = None,
    *,
    only: str = "",
) -> list[AuditPlan]:
    """Return the plans for concepts by name, one for each axis that they are on, without a look at judges and attacks.

    Raises:
        UserError: there is no name; the suite lacks a concept, its prompts or the tier, or the other axis lacks the label `only`; or no
            cell of the concepts is left once the erased labels of the other axis are skipped.
    """
    if not names:
        raise UserError("there is nothing to audit: the list `concepts` in edit.json is empty, so the edit does not say what it erases.")
    concepts = list(dict.fromkeys(suite.find_concept(name) for name in names))
    check_has_prompts(suite)
    labels = {axis: tuple(label for a, label in concepts if a == axis) for axis in AXES}
    only_label = find_only_label(suite, [axis for axis in AXES if labels[axis]], only)
    plans = [
        AuditPlan(
            suite, find_tier(suite, tier), axis, labels[axis], labels[cross_axis(axis)], tuple(replay_prompts), only_label, replay_origin
        )
        for axis in AXES
        if labels[axis]
    ]
    for plan in plans:
        if not any(case.role in PLAIN_ROLES and plan.is_target(case) for case in plan.cases):
            raise UserError(
                f"suite {suite.name} has no image left that asks for {', '.join(plan.targets)}: every {cross_axis(plan.axis)} of it "
                "is erased as well. Audit the edits one by one."
            )
    return plans


def concept_names(edits: Sequence[Edit]) -> list[str]:
    """Return the names of all concepts that edits claim to erase."""
    return [concept["name"] for edit in edits for concept in edit.info.concepts]


def check_buildable(suite: Suite) -> None:
    """Check the fields of a suite's judges, attacks and extractor before anything is generated; no weights are loaded.

    Raises:
        UserError: a field does not exist or has an invalid value.
    """
    build_judges(suite)
    build_attacks(suite.attacks.use)
    if suite.features:
        make_extractor(suite.features)


def prompt_list_records(suite: Suite, replay_origin: PromptListOrigin | None) -> list[dict[str, Any]]:
    """Return the list files of an audit for its result: the use of each, its origin, and what was left out of it."""
    own_origin = suite.origin if isinstance(suite, PromptListSuite) else None
    origins = (("prompts", own_origin), ("replay", replay_origin))
    return [{"use": use, **asdict(origin)} for use, origin in origins if origin]
