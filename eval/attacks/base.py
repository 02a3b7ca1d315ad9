"""What an attack is. A prompt attack finds other ways to ask; a weight attack fine-tunes. Both know the prompts they are to revive."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.training.teacher_cache import TeacherCache

Prepared = dict[str, Tensor]  # what an attack found out beforehand, as it is kept on disk


@dataclass(frozen=True)
class AttackContext:
    """What an attack is given.

    Attributes:
        model: the base in `before`, the erased model, edits in place, in everything else.
        prompts: N prompts that ask for the concept; an attack tries to revive each of them.
        without: the same N prompts, asking for something else of the concept's kind; empty where nobody can say.
        retain: prompts that have nothing to do with the concept.
        bank: the base's walks, recorded before: final latent i belongs to prompt i; those of `retain` follow (role "retain").
        pictures: rounds, that is pictures an attack may try for every prompt.
        seed: of everything random; the same stand gives the same attack.
        stripped: the same N prompts without the concept's words and with nothing in their place; empty where nobody can say.
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
        """What the base drew for some prompts: latents (B, C, h, w), fp32."""
        return self.cache.x_0[torch.as_tensor(chunk)].to(self.model.device).float()

    def generator(self, *parts: int) -> torch.Generator:
        """Random numbers on the CPU that depend on the stand and on `parts` alone, whatever ran before."""
        seed = self.seed
        for part in parts:
            seed = (seed * 1_000_003 + part + 1) % 2**63
        return torch.Generator().manual_seed(seed)


class NotApplicable(UserError):
    """This attack cannot be mounted on this model or suite by its nature; nothing went wrong, and the others go on without it."""


class TokenPrefix(NamedTuple):
    """What a search over token ids found, where the text they stand for need not read back as the same ids."""

    prompts: list[str]
    embeddings: Tensor  # (B, k, E) embeddings of the found ids, put before every prompt
    fails_round_trip: list[bool]  # whether the text reads back as other ids, so that only who feeds ids to the model can ask like this


class AttackQuery(NamedTuple):
    """One round: how each prompt of a chunk is asked for."""

    prompts: list[str]
    prefix: Tensor | None = None  # (B, k, E) or (k, E) input embeddings between the start token and the words of every prompt
    display_prompts: list[str] | None = None  # the same for a reader; None: the prompts themselves
    token_prefix: TokenPrefix | None = None  # of a search over token ids; `prompts` are then the texts that can be typed


class Attack(ABC):
    """Base of all attacks; the module's name is the attack's name, the fields are its budget."""

    paper: ClassVar[str]
    threat: ClassVar[str]  # what the attacker holds
    control: ClassVar[bool] = False  # searches nothing: what as many pictures find by chance


class PromptAttack(Attack):
    """Tries one way of asking a round. Chunks are independent: whatever chunk comes first, each gets the same rounds."""

    def prepare(self, context: AttackContext) -> Prepared:
        """What is worked out on the base, once."""
        return {}

    def fit(self, context: AttackContext, prepared: Prepared) -> Prepared:
        """What is worked out on the erased model once for all prompts; returned beside what was known."""
        return prepared

    @abstractmethod
    def queries(self, context: AttackContext, chunk: Sequence[int], prepared: Prepared) -> Iterator[AttackQuery]:
        """`stand.pictures` ways of asking for stand.prompts[i], i in chunk; the budget is spread evenly over them."""


class WeightAttack(Attack):
    """Fine-tunes the erased model and looks at it on the way."""

    @abstractmethod
    def fine_tune(self, context: AttackContext) -> Generator[int]:
        """Yields the number of steps done, with the model as it then is; the model is as before when the generator ends or is closed."""
