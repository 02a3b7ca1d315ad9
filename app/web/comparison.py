"""Images of a model with and without edits, from the same noise: what is asked for, and what comes out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple
from urllib.parse import urlencode

import torch
from torch import Tensor

from erasure.config.seeds import check_seed, parse_seed
from erasure.errors import UserError
from eval.records.scores import Scores

MAX_PROMPT_LENGTH, MAX_IMAGES, MAX_STEPS, MAX_EDITS = 500, 8, 100, 6
MAX_ROWS, MAX_COLUMNS = 8, 8  # of a sheet
STRENGTHS = (0.0, 0.5, 1.0, 1.5)  # of a strip
RANGES = {"images": (1, MAX_IMAGES), "steps": (1, MAX_STEPS), "guidance": (0, 30), "strength": (-2, 4)}


class EditChoice(NamedTuple):
    """An edit by its name on the page, and its strength: 0 is the base, 1 the edit as trained."""

    name: str
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """Everything that decides the images of a comparison, for seeds from `seed` up."""

    model: str
    prompt: str
    edits: tuple[EditChoice, ...] = ()
    seed: int = 0
    count: int = 1
    steps: int = 25
    guidance: float = 4.0

    def check(self) -> None:
        """Check every value.

        Raises:
            UserError: A value is out of its range, the prompt is too long, or the seed is not one.
        """
        values = [("images", self.count), ("steps", self.steps), ("guidance", self.guidance)]
        for name, value in [*values, *(("strength", choice.strength) for choice in self.edits)]:
            low, high = RANGES[name]
            if not low <= value <= high:
                raise UserError(f"{name} must lie between {low} and {high}, got {value:g}.")
        if len(self.edits) > MAX_EDITS:
            raise UserError(f"at most {MAX_EDITS} edits can be compared at once, here are {len(self.edits)}.")
        if len(self.prompt) > MAX_PROMPT_LENGTH:
            raise UserError(f"a prompt can have up to {MAX_PROMPT_LENGTH} characters; this one has {len(self.prompt):,}.")
        check_seed(self.seed)

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.count))

    def link(self) -> str:
        """Return the query of a link to the page that makes this comparison again."""
        values = asdict(self) | {"edits": [f"{choice.strength:g}*{choice.name}" for choice in self.edits]}
        return urlencode(values, doseq=True)

    def as_json(self) -> str:
        return json.dumps(asdict(self) | {"edits": [choice._asdict() for choice in self.edits]}, indent=2, ensure_ascii=False)


def parse_link(query: Mapping[str, str], edits: Sequence[str], default: CompareRequest) -> CompareRequest:
    """Return the request of a link that `CompareRequest.link` made; what it leaves out is the default's.

    Raises:
        UserError: A number is not one, or a value is out of its range.
    """
    try:
        request = CompareRequest(
            model=query.get("model", default.model),
            prompt=query.get("prompt", default.prompt),
            edits=tuple(parse_choice(text) for text in edits) if "prompt" in query else default.edits,
            seed=parse_seed(query.get("seed", str(default.seed))),
            count=int(query.get("count", default.count)),
            steps=int(query.get("steps", default.steps)),
            guidance=float(query.get("guidance", default.guidance)),
        )
    except ValueError as error:
        raise UserError(f"this link cannot be read: {error}.") from error
    request.check()
    return request


def parse_choice(text: str) -> EditChoice:
    """Return the edit that a link names, such as "0.5*uce (neon)"."""
    strength, star, name = text.partition("*")
    return EditChoice(name, float(strength)) if star else EditChoice(text)


@dataclass(frozen=True)
class Comparison:
    """Images of one prompt with the base and with edits applied, from the same noise."""

    seeds: list[int]
    base: Tensor  # [B, 3, H, W] uint8
    erased: Tensor  # [B, 3, H, W] uint8
    scores: list[tuple[Scores, Scores]]  # of each image before and after; empty without judges
    sensitive: bool = False  # an edit of the nsfw kind is applied: blurred until the user reveals it
    hidden: tuple[int, ...] = ()  # indices of pairs that the safety checker hides

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(
            self.seeds + other.seeds,
            torch.cat((self.base, other.base)),
            torch.cat((self.erased, other.erased)),
            self.scores + other.scores,
            self.sensitive or other.sensitive,
            self.hidden + tuple(len(self.seeds) + i for i in other.hidden),
        )

    def is_blurred(self, i: int) -> bool:
        return self.sensitive or i in self.hidden

    def difference(self, i: int) -> Tensor:
        """Return the mean absolute difference over colors of pair i: [H, W] in [0, 1]."""
        return (self.base[i].float() - self.erased[i].float()).abs().mean(0) / 255


@dataclass(frozen=True)
class Sheet:
    """Images of one seed in rows and columns: a prompt at several strengths, or several prompts with several edits."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    images: tuple[tuple[Tensor, ...], ...]  # [3, H, W] uint8; the last rows may be missing while it is made
    seed: int
    sensitive: bool = False
    hidden: frozenset[tuple[int, int]] = frozenset()  # cells that the safety checker hides

    def is_blurred(self, row: int, column: int) -> bool:
        return self.sensitive or (row, column) in self.hidden
