"""What judges say about an image, raw as it is stored. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from eval.records.fields import FiniteNumber, OptionalKey


@dataclass(frozen=True, kw_only=True)
class LabelScore:
    """What a judge of labels says about an image."""

    label: str
    p: FiniteNumber  # of that label
    top5: OptionalKey[tuple[tuple[str, FiniteNumber], ...]] = None  # the best labels, of a classifier with many
    scores: OptionalKey[Mapping[str, FiniteNumber]] = None  # by label


@dataclass(frozen=True, kw_only=True)
class AlignmentScore:
    """How well an image fits its prompt, by CLIP."""

    cosine: FiniteNumber  # times 100


JudgeScore = LabelScore | AlignmentScore


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of an image by what they are about; None without a judge, or without its weights."""

    style: OptionalKey[LabelScore] = None
    object: OptionalKey[LabelScore] = None
    clip: OptionalKey[AlignmentScore] = None
