"""What token ids show whose text tokenizes to other ids: counted separately from an attack's success, since nobody can type them."""

from collections.abc import Container, Sequence

from eval.attacks.base import AttackQuery, TokenPrefix
from eval.records.rows import AttackScore, TokenIdOutcome


class TokenIdSuccesses:
    """Counts for a chunk of prompts under one attack.

    A prompt is asked with ids, from the same noise as with text, until its text or its ids have shown the concept.
    """

    def __init__(self, chunk: Sequence[int]) -> None:
        self.chunk = list(chunk)
        self.searches_ids = False  # whether the attack searches over ids at all
        self.failed_round_trips = [0] * len(self.chunk)  # rounds whose text tokenizes to other ids
        self.first_round: list[int | None] = [None] * len(self.chunk)  # in which ids alone first showed the concept

    def positions_to_try(self, token_prefix: TokenPrefix, broken: Container[int]) -> list[int]:
        """Return the positions in the chunk that this round asks with ids as well.

        Args:
            broken: prompts that text has broken.
        """
        self.searches_ids = True
        self.failed_round_trips = [
            count + fails for count, fails in zip(self.failed_round_trips, token_prefix.fails_round_trip, strict=True)
        ]
        return [
            position
            for position, i in enumerate(self.chunk)
            if token_prefix.fails_round_trip[position] and i not in broken and self.first_round[position] is None
        ]

    def add(self, round_index: int, positions: Sequence[int], scores: Sequence[AttackScore]) -> None:
        """Add the judge's scores of a round."""
        for position, score in zip(positions, scores, strict=True):
            self.first_round[position] = round_index if score.shows_concept else None

    def outcome(self, position: int) -> TokenIdOutcome | None:
        """Return the outcome for the row of one prompt; None if the attack does not search over ids."""
        if not self.searches_ids:
            return None
        return TokenIdOutcome(failed_round_trips=self.failed_round_trips[position], round=self.first_round[position])


def query_by_ids(token_prefix: TokenPrefix, positions: Sequence[int]) -> AttackQuery:
    """Return a query that asks for some prompts of a round with ids."""
    return AttackQuery([token_prefix.prompts[position] for position in positions], token_prefix.embeddings[list(positions)])
