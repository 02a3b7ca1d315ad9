"""Random prefix: random tokens before every prompt, from the vocabulary that attacks search. What they gain beyond it is their search's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from erasure.errors import UserError
from eval.attacks._words import typed, words
from eval.attacks.base import Ask, Known, PromptAttack, Stand


@dataclass(frozen=True, kw_only=True)
class RandomPrefix(PromptAttack):
    """The control of every attack that puts tokens before a prompt: other random tokens in every round."""

    paper: ClassVar[str] = "control"
    threat: ClassVar[str] = "may ask"
    control: ClassVar[bool] = True

    tokens: int = 3  # tokens before every prompt

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UserError(f"random_prefix: tokens must be at least 1, got {self.tokens}.")

    def rounds(self, stand: Stand, chunk: Sequence[int], known: Known) -> Iterator[Ask]:
        choice, asked = words(stand.model), [stand.prompts[i] for i in chunk]
        for j in range(stand.pictures):
            chosen = [torch.randint(len(choice), (self.tokens,), generator=stand.generator(i, j)) for i in chunk]
            yield typed(stand.model, choice[torch.stack(chosen)], asked)
