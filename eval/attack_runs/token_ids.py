"""What token ids show whose text reads back as other ids: counted apart from an attack's success, as nobody can type them."""

from collections.abc import Container, Sequence
from typing import Any

from eval.attacks.base import Ask, Tokens


class ByTokenIds:
    """Of a chunk of prompts under one attack.

    A prompt is asked by ids, from the same noise as by text, until its text or its ids have shown the concept.
    """

    def __init__(self, chunk: Sequence[int]) -> None:
        self.chunk = list(chunk)
        self.searched = False  # whether the attack searches over ids at all
        self.differing = [0] * len(self.chunk)  # rounds whose text reads back as other ids
        self.round: list[int | None] = [None] * len(self.chunk)  # in which ids alone first showed the concept

    def todo(self, tokens: Tokens, found: Container[int]) -> list[int]:
        """Positions in the chunk that this round asks by ids as well; `found` are the prompts that text has broken."""
        self.searched = True
        self.differing = [count + differs for count, differs in zip(self.differing, tokens.differ, strict=True)]
        return [at for at, i in enumerate(self.chunk) if tokens.differ[at] and i not in found and self.round[at] is None]

    def add(self, j: int, at: Sequence[int], readings: Sequence[dict[str, Any]]) -> None:
        """What the judge read in round j."""
        for place, reading in zip(at, readings, strict=True):
            self.round[place] = j if reading["shown"] else None

    def record(self, at: int) -> dict[str, Any]:
        """For the row of one prompt; nothing where the attack does not search over ids."""
        return {"by_ids": {"differing": self.differing[at], "round": self.round[at]}} if self.searched else {}


def only(tokens: Tokens, at: Sequence[int]) -> Ask:
    """Some prompts of a round, asked by ids."""
    return Ask([tokens.prompts[place] for place in at], tokens.prefix[list(at)])
