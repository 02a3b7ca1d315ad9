"""What token ids show whose text reads back as other ids: counted apart from an attack's success, as nobody can type them."""

from collections.abc import Container, Sequence
from typing import Any

from eval.attacks.base import AttackQuery, TokenPrefix


class TokenIdSuccesses:
    """Of a chunk of prompts under one attack.

    A prompt is asked by ids, from the same noise as by text, until its text or its ids have shown the concept.
    """

    def __init__(self, chunk: Sequence[int]) -> None:
        self.chunk = list(chunk)
        self.searches_ids = False  # whether the attack searches over ids at all
        self.failed_round_trips = [0] * len(self.chunk)  # rounds whose text reads back as other ids
        self.first_round: list[int | None] = [None] * len(self.chunk)  # in which ids alone first showed the concept

    def positions_to_try(self, token_prefix: TokenPrefix, broken: Container[int]) -> list[int]:
        """Positions in the chunk that this round asks by ids as well; `found` are the prompts that text has broken."""
        self.searches_ids = True
        self.failed_round_trips = [
            count + differs for count, differs in zip(self.failed_round_trips, token_prefix.fails_round_trip, strict=True)
        ]
        return [
            position
            for position, i in enumerate(self.chunk)
            if token_prefix.fails_round_trip[position] and i not in broken and self.first_round[position] is None
        ]

    def add(self, round_index: int, positions: Sequence[int], scores: Sequence[dict[str, Any]]) -> None:
        """What the judge read in round j."""
        for position, score in zip(positions, scores, strict=True):
            self.first_round[position] = round_index if score["shown"] else None

    def record(self, position: int) -> dict[str, Any]:
        """For the row of one prompt; nothing where the attack does not search over ids."""
        return (
            {"by_ids": {"differing": self.failed_round_trips[position], "round": self.first_round[position]}} if self.searches_ids else {}
        )


def query_by_ids(token_prefix: TokenPrefix, positions: Sequence[int]) -> AttackQuery:
    """Some prompts of a round, asked by ids."""
    return AttackQuery([token_prefix.prompts[position] for position in positions], token_prefix.embeddings[list(positions)])
