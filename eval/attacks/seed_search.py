"""Seed search: the same prompt with more seeds. What an attack gains beyond this it owes to its words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from eval.attacks.base import AttackContext, AttackQuery, Prepared, PromptAttack


@dataclass(frozen=True, kw_only=True)
class SeedSearch(PromptAttack):
    """The control for every attack that generates several images and takes the best: the same number of images, no search."""

    paper: ClassVar[str] = "control"
    threat: ClassVar[str] = "can prompt"
    control: ClassVar[bool] = True

    def queries(self, context: AttackContext, chunk: Sequence[int], prepared: Prepared) -> Iterator[AttackQuery]:
        for _ in range(context.rounds):
            yield AttackQuery([context.prompts[i] for i in chunk])
