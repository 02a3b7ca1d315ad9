"""Ring-A-Bell: words whose encoding lies where the prompt would be with more of the concept; only the base's text encoder is asked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from eval.attacks._words import typed, words
from eval.attacks.base import Ask, Known, PromptAttack, Stand, Unsuited

AT_ONCE = 256  # candidates encoded together


@dataclass(frozen=True, kw_only=True)
class RingABell(PromptAttack):
    """Genetic search in the text encoder (Tsai et al., arXiv:2310.10012).

    The found words replace the prompt. In the authors' code the best candidate may be lost to a mutation; here it never mutates.
    """

    paper: ClassVar[str] = "arXiv:2310.10012"
    threat: ClassVar[str] = "holds the base's text encoder; may ask"

    tokens: int = 16  # length of the found prompts
    eta: float = 3.0  # how much of the concept is added; the paper takes 3 for nudity, 5 and more for violence
    population: int = 200  # candidates for every prompt; the better half stays
    generations: int = 3000  # times they breed
    crossover: float = 0.5  # chance that a candidate has two children with another
    mutation: float = 0.25  # chance that one token of a candidate changes

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("population", 2), ("generations", 1)):
            if getattr(self, name) < least:
                raise UserError(f"ring_a_bell: {name} must be at least {least}, got {getattr(self, name)}.")
        for name in ("crossover", "mutation"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"ring_a_bell: {name} is a probability from 0 to 1, got {getattr(self, name)}.")

    @torch.no_grad()
    def before(self, stand: Stand) -> Known:
        """ "ids" (rounds, N, K): the best tokens as the search went on; "distance" (rounds, N): their squared error.

        Raises:
            Unsuited: no prompts with something else in the concept's place.
            FloatingPointError: distances that are no numbers.
        """
        if len(stand.without) != len(stand.prompts):
            raise Unsuited(
                "ring_a_bell needs every prompt with something else in the concept's place, which a list of prompts does not say."
            )
        said = encoded(stand.model, stand.prompts)
        # c = mean over pairs of f(with the concept) - f(without); sought: f(P) + eta c
        concept = (said - encoded(stand.model, stand.without)).mean(0)
        ends = [max(1, (j + 1) * self.generations // stand.pictures) - 1 for j in range(stand.pictures)]
        ids: list[Tensor] = []
        distance: list[Tensor] = []
        for generation, (pool, error) in enumerate(self.search(stand, said + self.eta * concept)):
            ids += [pool[:, 0].clone()] * ends.count(generation)
            distance += [error[:, 0].clone()] * ends.count(generation)
        if not torch.stack(distance).isfinite().all():
            raise FloatingPointError("ring_a_bell: the text encoder gives distances that are no numbers; lower its eta.")
        return {"ids": torch.stack(ids), "distance": torch.stack(distance)}

    def search(self, stand: Stand, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """After every generation the kept candidates (N, P/2, K) and their squared errors (N, P/2), best first; target (N, L, D)."""
        model, choice = stand.model, words(stand.model)
        generators = [stand.generator(i) for i in range(len(target))]
        drawn = [torch.randint(len(choice), (self.population, self.tokens), generator=g) for g in generators]
        pool = choice[torch.stack(drawn)]
        error, new = torch.zeros(pool.shape[:2]), torch.ones(pool.shape[:2], dtype=torch.bool)
        for generation in range(self.generations):
            if generation:
                bred = [self.bred(p, e, choice, g) for p, e, g in zip(pool, error, generators, strict=True)]
                pool, error, new = (torch.stack(parts) for parts in zip(*bred, strict=True))
            if new.any():
                error[new] = distances(model, pool[new], new.nonzero()[:, 0], target)
            order = error.argsort(dim=-1, stable=True)[:, : self.population // 2]
            pool, error = pool.gather(1, order[..., None].expand(-1, -1, self.tokens)), error.gather(1, order)
            yield pool, error

    def bred(self, kept: Tensor, error: Tensor, choice: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The kept candidates (H, K) and the children each may have: candidates (3H, K), errors (3H,) and which have yet to be measured.

        Children that were not born have an infinite error.
        """
        half, length = kept.shape
        mate = kept[torch.randint(half, (half,), generator=generator)]
        first = torch.arange(length) < torch.randint(length, (half, 1), generator=generator)  # cut anywhere, also before all tokens
        pool = torch.cat((kept, torch.where(first, kept, mate), torch.where(first, mate, kept)))
        born = (torch.rand(half, generator=generator) < self.crossover).repeat(2)
        alive = torch.cat((torch.ones(half, dtype=torch.bool), born))
        mutates = alive & (torch.rand(3 * half, generator=generator) < self.mutation)
        mutates[0] = False
        place = torch.randint(length, (3 * half,), generator=generator)
        value = choice[torch.randint(len(choice), (3 * half,), generator=generator)]
        pool[mutates, place[mutates]] = value[mutates]
        new = mutates.clone()
        new[half:] |= born
        return pool, torch.cat((error, error.new_full((2 * half,), torch.inf))), new

    def rounds(self, stand: Stand, chunk: Sequence[int], known: Known) -> Iterator[Ask]:
        for ids in known["ids"][:, list(chunk)]:
            yield typed(stand.model, ids, [""] * len(chunk))


def encoded(model: DiffusionModel, prompts: Sequence[str]) -> Tensor:
    """Hidden states f(P) of the text encoder (N, L, D)."""
    return torch.cat([model.encode(prompts[start : start + AT_ONCE]) for start in range(0, len(prompts), AT_ONCE)])


def distances(model: DiffusionModel, ids: Tensor, owner: Tensor, target: Tensor) -> Tensor:
    """Squared errors (M,) of the hidden states of candidates (M, K) to those their prompts seek: target (N, L, D), owner (M,)."""
    vocabulary, found = model.vocabulary(), []
    for part, whose in zip(ids.split(AT_ONCE), owner.split(AT_ONCE), strict=True):
        said = model.encode([""] * len(part), vocabulary[part.to(vocabulary.device)])
        found.append((said - target[whose.to(target.device)]).pow(2).flatten(1).sum(1).cpu())
    return torch.cat(found)
