"""Rows of an audit: images with their judge scores (samples.jsonl), attacked prompts and checkpoints (attacks.jsonl). No torch here."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from eval.records.axes import Axis
from eval.records.fields import Count, FiniteNumber, KeyUnlessEmpty, OptionalKey, Role
from eval.records.models import AuditedModel
from eval.records.scores import Scores

CaseKey = tuple[Role, str, str, str, int]  # role, variant, style, object, index: one image, in whatever model


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One image of one model, with the labels that its prompt asks for."""

    model: AuditedModel
    image: str  # path in the audit's folder
    prompt: str
    seed: Count
    role: Role
    variant: str
    style: str  # empty if the prompt says nothing about it
    object: str
    index: Count
    scores: Scores

    @property
    def file_name(self) -> str:
        """Name of the image, the same for every model."""
        return self.image.rpartition("/")[2]

    @property
    def case_key(self) -> CaseKey:
        """What identifies the image across models."""
        return self.role, self.variant, self.style, self.object, self.index

    def prompted(self, axis: Axis) -> str:
        """Return the label that the prompt asks for."""
        return self.style if axis == "style" else self.object

    def judged(self, axis: Axis) -> str | None:
        """Return the label that the judge of an axis gave; None without its score."""
        score = self.scores.style if axis == "style" else self.scores.object
        return score.label if score else None

    def is_judged(self, axis: Axis) -> bool:
        return self.judged(axis) is not None

    def is_as_prompted(self, axis: Axis) -> bool:
        """Return whether the judge of an axis gave the label that the prompt asks for."""
        return self.judged(axis) == self.prompted(axis)


@dataclass(frozen=True, kw_only=True)
class SampleRows:
    """All rows of samples.jsonl."""

    rows: tuple[SampleRow, ...]


@dataclass(frozen=True, kw_only=True)
class AttackScore:
    """What the judge says about an image of an attack."""

    label: str
    p: FiniteNumber
    shows_concept: bool


@dataclass(frozen=True, kw_only=True)
class TokenIdOutcome:
    """What the ids of a search showed whose text tokenizes to other ids."""

    failed_round_trips: Count  # rounds whose text tokenizes to other ids
    round: Count | None  # in which ids alone first showed the concept


@dataclass(frozen=True, kw_only=True)
class SearchRow:
    """A prompt under an attack that searches for prompts."""

    attack: str
    index: Count  # of the prompt
    image: str  # file name of the plain prompt's image
    prompt: str
    search_scores: tuple[AttackScore, ...]  # one per round
    round: Count | None  # the first that showed the concept
    found_prompt: str | None  # of that round
    fresh_scores: tuple[AttackScore, ...]  # of the found prompt, from noise that the search never saw
    token_ids: OptionalKey[TokenIdOutcome] = None

    @property
    def images_until_success(self) -> int | None:
        """Number of images after which the attack first succeeded."""
        return None if self.round is None else self.round + 1


@dataclass(frozen=True, kw_only=True)
class FineTuningRow:
    """A checkpoint of a fine-tuning, scored on every attacked prompt."""

    attack: str
    step: Count
    scores: tuple[AttackScore, ...]


@dataclass(frozen=True, kw_only=True)
class FailedAttackRow:
    """An attack without outcomes, and why."""

    attack: str
    skipped: KeyUnlessEmpty[str] = ""  # it does not fit the model or suite
    crashed: KeyUnlessEmpty[str] = ""


def _row_tag(row: Any) -> str:
    if isinstance(row, SearchRow) or (isinstance(row, dict) and "search_scores" in row):
        return "search"
    return "fine-tuning" if isinstance(row, FineTuningRow) or (isinstance(row, dict) and "step" in row) else "failed"


AttackRow = Annotated[
    Annotated[SearchRow, Tag("search")] | Annotated[FineTuningRow, Tag("fine-tuning")] | Annotated[FailedAttackRow, Tag("failed")],
    Discriminator(_row_tag),
]


@dataclass(frozen=True, kw_only=True)
class AttackRows:
    """All rows of attacks.jsonl."""

    rows: tuple[AttackRow, ...]


@dataclass(frozen=True, kw_only=True)
class SavedSearch:
    """The rows of a chunk of prompts under one attack, as they are saved while it runs."""

    rows: tuple[SearchRow, ...]
    judge: str  # digest of the judge that scored them


@dataclass(frozen=True, kw_only=True)
class SavedFineTuning:
    """The rows of one fine-tuning, as they are saved when it ends."""

    rows: tuple[FineTuningRow, ...]
    judge: str
