"""Base classes of attacks. A prompt attack searches for other prompts; a weight attack fine-tunes. Both know which prompts to revive."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.training.teacher_cache import TeacherCache

Prepared = dict[str, Tensor]  # what an attack computes once and saves to disk


@dataclass(frozen=True)
class AttackContext:
    """What an attack is given.

    Attributes:
        model: the base in `prepare`, the erased model (edits applied) in everything else.
        prompts: N prompts that ask for the concept; an attack tries to revive each of them.
        substitute_prompts: the same N prompts with another label of the concept's kind in its place; empty where the suite has no template.
        retain_prompts: prompts that have nothing to do with the concept.
        cache: the base's trajectories: final latent i belongs to prompt i; those of `retain_prompts` follow (role "retain").
        rounds: images an attack may try per prompt.
        seed: of all random numbers; the same context gives the same attack.
        stripped_prompts: the same N prompts with the concept's words removed; empty where the suite has no template.
    """

    model: DiffusionModel
    prompts: tuple[str, ...]
    substitute_prompts: tuple[str, ...]
    retain_prompts: tuple[str, ...]
    cache: TeacherCache
    rounds: int
    seed: int = 0
    stripped_prompts: tuple[str, ...] = ()

    def base_latents(self, chunk: Sequence[int]) -> Tensor:
        """Return the latents that the base generated for some prompts [B, C, h, w], fp32."""
        return self.cache.x_0[torch.as_tensor(chunk)].to(self.model.device).float()

    def generator(self, *parts: int) -> torch.Generator:
        """Return a CPU generator seeded by the context and `parts` alone, whatever ran before."""
        seed = self.seed
        for part in parts:
            seed = (seed * 1_000_003 + part + 1) % 2**63
        return torch.Generator().manual_seed(seed)


class NotApplicable(UserError):
    """This attack cannot run on this model or suite; nothing went wrong, and the other attacks go on without it."""


class TokenPrefix(NamedTuple):
    """Token ids that a search found. Their text may not tokenize to the same ids."""

    prompts: list[str]
    embeddings: Tensor  # (B, k, E) embeddings of the ids, put before every prompt
    fails_round_trip: list[bool]  # whether the text tokenizes to other ids, so that nobody can ask like this by typing


class AttackQuery(NamedTuple):
    """One round: how each prompt of a chunk is asked."""

    prompts: list[str]
    prefix: Tensor | None = None  # (B, k, E) or (k, E) input embeddings between the start token and the words of every prompt
    display_prompts: list[str] | None = None  # the same for a reader; None: the prompts themselves
    token_prefix: TokenPrefix | None = None  # of a search over token ids; `prompts` are then the texts that can be typed


class Attack(ABC):
    """Base of all attacks; the module's name is the attack's name, the fields are its budget."""

    paper: ClassVar[str]
    threat: ClassVar[str]  # what the attacker has
    control: ClassVar[bool] = False  # searches nothing: measures what the same number of images finds by chance


class PromptAttack(Attack):
    """Tries one query per round. Chunks are independent: each gets the same rounds in whatever order the chunks run."""

    def prepare(self, context: AttackContext) -> Prepared:
        """Compute what depends on the base alone, once."""
        return {}

    def fit(self, context: AttackContext, prepared: Prepared) -> Prepared:
        """Compute what depends on the erased model, once for all prompts; return it together with `prepared`."""
        return prepared

    @abstractmethod
    def queries(self, context: AttackContext, chunk: Sequence[int], prepared: Prepared) -> Iterator[AttackQuery]:
        """Yield `context.rounds` queries for context.prompts[i], i in chunk; the budget is spread evenly over them."""


class WeightAttack(Attack):
    """Fine-tunes the erased model and stops at checkpoints."""

    @abstractmethod
    def fine_tune(self, context: AttackContext) -> Generator[int]:
        """Yield the number of steps done, with the model in that state; the model is restored when the generator ends or is closed."""
