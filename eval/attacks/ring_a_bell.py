"""Ring-A-Bell: tokens whose encoding is that of the prompt with more of the concept added; it needs only the base's text encoder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from eval.attacks._token_search import query_from_ids, searchable_token_ids
from eval.attacks.base import AttackContext, AttackQuery, NotApplicable, Prepared, PromptAttack

ENCODE_BATCH = 256  # candidates encoded together


@dataclass(frozen=True, kw_only=True)
class RingABell(PromptAttack):
    """Genetic search in the text encoder (Tsai et al., arXiv:2310.10012).

    The tokens it finds replace the prompt. In the authors' code a mutation may destroy the best candidate; here the best never mutates.
    """

    paper: ClassVar[str] = "arXiv:2310.10012"
    threat: ClassVar[str] = "has the base's text encoder; can prompt"

    tokens: int = 16  # length of the prompts it searches
    concept_weight: float = 3.0  # how much of the concept is added (the paper's eta); the paper uses 3 for nudity, 5 and more for violence
    population: int = 200  # candidates for every prompt; the better half survives
    generations: int = 3000  # generations of the search
    crossover: float = 0.5  # chance that a candidate has two children with another
    mutation: float = 0.25  # chance that one token of a candidate changes

    def __post_init__(self) -> None:
        for name, minimum in (("tokens", 1), ("population", 2), ("generations", 1)):
            if getattr(self, name) < minimum:
                raise UserError(f"ring_a_bell: {name} must be at least {minimum}, got {getattr(self, name)}.")
        for name in ("crossover", "mutation"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"ring_a_bell: {name} is a probability from 0 to 1, got {getattr(self, name)}.")

    @torch.no_grad()
    def prepare(self, context: AttackContext) -> Prepared:
        """Return "ids" (rounds, N, K), int64: the best tokens as the search went on; "errors" (rounds, N): their squared error.

        Raises:
            NotApplicable: there are no prompts with something else in the concept's place.
            FloatingPointError: the errors are NaN or Inf.
        """
        if len(context.substitute_prompts) != len(context.prompts):
            raise NotApplicable(
                "ring_a_bell needs every prompt with something else in the concept's place, which a prompt list does not have."
            )
        encodings = encode_prompts(context.model, context.prompts)
        # c = mean over pairs of f(with the concept) - f(without); target: f(P) + eta c, with eta the concept_weight
        concept = (encodings - encode_prompts(context.model, context.substitute_prompts)).mean(0)
        snapshot_generations = [max(1, (j + 1) * self.generations // context.rounds) - 1 for j in range(context.rounds)]
        ids: list[Tensor] = []
        errors: list[Tensor] = []
        for generation, (pool, error) in enumerate(self.search(context, encodings + self.concept_weight * concept)):
            ids += [pool[:, 0].clone()] * snapshot_generations.count(generation)
            errors += [error[:, 0].clone()] * snapshot_generations.count(generation)
        if not torch.stack(errors).isfinite().all():
            raise FloatingPointError("ring_a_bell: the text encoder gives errors with NaN or Inf; lower its concept_weight.")
        return {"ids": torch.stack(ids), "errors": torch.stack(errors)}

    def search(self, context: AttackContext, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the survivors of each generation (N, P/2, K) and their squared errors (N, P/2), best first; target (N, L, D)."""
        model, token_ids = context.model, searchable_token_ids(context.model)
        generators = [context.generator(i) for i in range(len(target))]
        initial_picks = [torch.randint(len(token_ids), (self.population, self.tokens), generator=g) for g in generators]
        pool = token_ids[torch.stack(initial_picks)]
        error, new = torch.zeros(pool.shape[:2]), torch.ones(pool.shape[:2], dtype=torch.bool)
        for generation in range(self.generations):
            if generation:
                offspring = [self.breed(p, e, token_ids, g) for p, e, g in zip(pool, error, generators, strict=True)]
                pool, error, new = (torch.stack(parts) for parts in zip(*offspring, strict=True))
            if new.any():
                error[new] = encoding_errors(model, pool[new], new.nonzero()[:, 0], target)
            order = error.argsort(dim=-1, stable=True)[:, : self.population // 2]
            pool, error = pool.gather(1, order[..., None].expand(-1, -1, self.tokens)), error.gather(1, order)
            yield pool, error

    def breed(self, parents: Tensor, error: Tensor, token_ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return parents (H, K) and two possible children of each: candidates (3H, K), errors (3H,), and which are unmeasured.

        Children that were not born have an infinite error.
        """
        half, length = parents.shape
        mates = parents[torch.randint(half, (half,), generator=generator)]
        from_first = torch.arange(length) < torch.randint(
            length, (half, 1), generator=generator
        )  # the cut can be anywhere, also before all tokens
        pool = torch.cat((parents, torch.where(from_first, parents, mates), torch.where(from_first, mates, parents)))
        born = (torch.rand(half, generator=generator) < self.crossover).repeat(2)
        alive = torch.cat((torch.ones(half, dtype=torch.bool), born))
        mutates = alive & (torch.rand(3 * half, generator=generator) < self.mutation)
        mutates[0] = False
        positions = torch.randint(length, (3 * half,), generator=generator)
        replacements = token_ids[torch.randint(len(token_ids), (3 * half,), generator=generator)]
        pool[mutates, positions[mutates]] = replacements[mutates]
        new = mutates.clone()
        new[half:] |= born
        return pool, torch.cat((error, error.new_full((2 * half,), torch.inf))), new

    def queries(self, context: AttackContext, chunk: Sequence[int], prepared: Prepared) -> Iterator[AttackQuery]:
        for ids in prepared["ids"][:, list(chunk)]:
            yield query_from_ids(context.model, ids, [""] * len(chunk))


def encode_prompts(model: DiffusionModel, prompts: Sequence[str]) -> Tensor:
    """Return the hidden states f(P) of the text encoder (N, L, D)."""
    return torch.cat([model.encode(prompts[start : start + ENCODE_BATCH]).sequence for start in range(0, len(prompts), ENCODE_BATCH)])


def encoding_errors(model: DiffusionModel, ids: Tensor, prompt_index: Tensor, target: Tensor) -> Tensor:
    """Return squared errors (M,) of the hidden states of candidates (M, K) to target[prompt_index]; target (N, L, D), index (M,)."""
    vocabulary, errors = model.token_embeddings(), []
    for id_batch, prompt_indices in zip(torch.split(ids, ENCODE_BATCH), torch.split(prompt_index, ENCODE_BATCH), strict=True):
        encodings = model.encode([""] * len(id_batch), vocabulary[id_batch.to(vocabulary.device)]).sequence
        errors.append((encodings - target[prompt_indices.to(target.device)]).pow(2).flatten(1).sum(1).cpu())
    return torch.cat(errors)
