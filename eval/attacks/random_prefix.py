"""Random prefix: words of the vocabulary at random before every prompt. What an attack gains beyond this it owes to its search."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from erasure.errors import UserError
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
        vocabulary, asked = stand.model.vocabulary(), [stand.prompts[i] for i in chunk]
        for j in range(stand.pictures):
            drawn = [torch.randint(len(vocabulary), (self.tokens,), generator=stand.generator(i, j)) for i in chunk]
            shown = [f"{stand.model.spelled(ids.tolist())} {prompt}" for ids, prompt in zip(drawn, asked, strict=True)]
            yield Ask(asked, vocabulary[torch.stack(drawn).to(vocabulary.device)], shown)
