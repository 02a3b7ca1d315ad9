"""Random prefix: random tokens before every prompt, from the vocabulary that attacks search. It shows what a search adds to chance."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from erasure.errors import UserError
from eval.attacks._token_search import query_from_ids, searchable_token_ids
from eval.attacks.base import AttackContext, AttackQuery, Prepared, PromptAttack


@dataclass(frozen=True, kw_only=True)
class RandomPrefix(PromptAttack):
    """The control for every attack that puts tokens before a prompt: new random tokens in every round."""

    paper: ClassVar[str] = "control"
    threat: ClassVar[str] = "can prompt"
    control: ClassVar[bool] = True

    tokens: int = 3  # tokens before every prompt

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UserError(f"random_prefix: tokens must be at least 1, got {self.tokens}.")

    def queries(self, context: AttackContext, chunk: Sequence[int], prepared: Prepared) -> Iterator[AttackQuery]:
        token_ids, prompts = searchable_token_ids(context.model), [context.prompts[i] for i in chunk]
        for round_index in range(context.rounds):
            picks = [torch.randint(len(token_ids), (self.tokens,), generator=context.generator(i, round_index)) for i in chunk]
            yield query_from_ids(context.model, token_ids[torch.stack(picks)], prompts)
