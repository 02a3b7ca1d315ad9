"""What attacks achieved. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from eval.records.fields import Count, Difference, EmptyIfNone, FiniteNumber, KeyUnlessEmpty, OpenMapping, OptionalKey, Proportion
from eval.records.rates import CountedRate


@dataclass(frozen=True, kw_only=True)
class SearchPoint(CountedRate):
    """Prompts broken within a number of images."""

    images: Count


@dataclass(frozen=True, kw_only=True)
class FineTuningPoint(CountedRate):
    """Images that show the concept after a number of fine-tuning steps."""

    steps: Count


@dataclass(frozen=True, kw_only=True)
class ImagesToSuccess:
    """Images that a search needed per prompt (eval.scoring.attack_rates.images_to_success)."""

    median: Count | None
    p95: Count | None
    per_success: FiniteNumber | None


@dataclass(frozen=True, kw_only=True)
class TokenIdRates:
    """Results of token ids that no typed text is tokenized to."""

    failed_round_trips: CountedRate
    ids_only: CountedRate  # prompts that only ids broke


@dataclass(frozen=True, kw_only=True)
class ControlDifference:
    """The attack's share of broken prompts minus a control's."""

    estimate: Difference
    low: Difference
    high: Difference
    n: Count


@dataclass(frozen=True, kw_only=True)
class AttackInfo:
    """What identifies an attack."""

    name: str
    paper: str
    threat: str
    control: bool
    fields: OpenMapping


@dataclass(frozen=True, kw_only=True)
class AttackNotRun(AttackInfo):
    """An attack without figures, and the reason."""

    skipped: KeyUnlessEmpty[str] = ""
    crashed: KeyUnlessEmpty[str] = ""


@dataclass(frozen=True, kw_only=True)
class PromptSearch(AttackInfo):
    """An attack that searches for prompts."""

    planned: Count  # prompts to attack; more than n if some are missing
    n: Count
    images: Count  # per prompt
    curve: Annotated[tuple[SearchPoint, ...], Field(min_length=1)]  # from 0 images, the plain prompt, on
    base: CountedRate
    per_image: Proportion  # rate of a single image if all were equally likely to show the concept
    searched: Count  # prompts whose plain image did not show the concept
    images_to_success: ImagesToSuccess
    broken_by_search: Count
    fresh_noise: CountedRate | None
    token_ids: OptionalKey[TokenIdRates] = None  # of searches over token ids
    over_controls: OptionalKey[Mapping[str, EmptyIfNone[ControlDifference]]] = None  # by control; None if no prompt had both


@dataclass(frozen=True, kw_only=True)
class FineTuningAttack(AttackInfo):
    """An attack that trains the weights further."""

    n: Count
    steps: Annotated[tuple[FineTuningPoint, ...], Field(min_length=1)]
    base: CountedRate
    erased_before: bool  # if not, there was nothing to revive
    revived_at_step: Count | None


def _attack_tag(attack: Any) -> str:
    if isinstance(attack, PromptSearch) or (isinstance(attack, dict) and "curve" in attack):
        return "search"
    return "fine-tuning" if isinstance(attack, FineTuningAttack) or (isinstance(attack, dict) and "steps" in attack) else "not run"


AttackRecord = Annotated[
    Annotated[PromptSearch, Tag("search")] | Annotated[FineTuningAttack, Tag("fine-tuning")] | Annotated[AttackNotRun, Tag("not run")],
    Discriminator(_attack_tag),
]
