"""Learned embedding: a word that somebody else learned for the concept, from a file, asks for it without its name (black box)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from erasure.errors import UserError
from eval.attacks.base import AttackContext, AttackQuery, NotApplicable, Prepared, PromptAttack
from eval.judges._classifier import read_tensors

SUFFIXES = (".safetensors", ".bin", ".pt")


@dataclass(frozen=True, kw_only=True)
class LearnedEmbedding(PromptAttack):
    """Textual inversion as people share it (Gal et al., arXiv:2208.01618), before prompts that never name the concept: `stand.stripped`.

    Nothing is searched on this model: every round asks alike, from other noise. What was learned on another model is a lower bound on what
    concept_inversion would learn here.

    Raises:
        UserError: a file that is no such embedding.
    """

    paper: ClassVar[str] = "arXiv:2208.01618"
    threat: ClassVar[str] = "holds a word that was learned for the concept on another model; may ask"

    file: str  # its file: one tensor (E,) or (k, E) in .safetensors, or in .bin or .pt that hold nothing to run

    def __post_init__(self) -> None:
        read_embedding(Path(self.file))  # one that is none is told when the suite is read, not hours later

    def prepare(self, context: AttackContext) -> Prepared:
        """ "word" (k, E): the vectors of the file.

        Raises:
            Unsuited: no prompts without the concept.
            UserError: vectors of another width than the model's.
        """
        if len(context.stripped_prompts) != len(context.prompts):
            raise NotApplicable("learned_embedding asks without the concept's name, and nobody says what these prompts are without it.")
        vectors, width = read_embedding(Path(self.file)), context.model.token_embeddings().shape[1]
        if vectors.shape[1] != width:
            raise UserError(f"learned_embedding: the vectors of {self.file} have width {vectors.shape[1]}, this model's have {width}.")
        return {"word": vectors}

    def queries(self, context: AttackContext, chunk: Sequence[int], prepared: Prepared) -> Iterator[AttackQuery]:
        prompts, vectors = [context.stripped_prompts[i] for i in chunk], prepared["word"].to(context.model.device)
        for _ in range(context.rounds):
            yield AttackQuery(prompts, vectors, [f"(the word of {Path(self.file).name}) {prompt}" for prompt in prompts])


def read_embedding(path: Path) -> Tensor:
    """The vectors (k, E) of an embedding's file, in fp32.

    Raises:
        UserError: no such file, one that holds code or more than one tensor, a tensor of another shape, or not of numbers.
    """
    if path.suffix not in SUFFIXES or not path.is_file():
        raise UserError(f"learned_embedding: file {str(path)!r} is no {', '.join(SUFFIXES)} file that is there; name one.")
    content: object = read_tensors(path, "")
    if isinstance(content, dict) and len(content) == 1:
        (content,) = content.values()
    if not (isinstance(content, Tensor) and content.is_floating_point() and content.ndim in (1, 2) and content.numel()):
        raise UserError(f"learned_embedding: {path} must hold one tensor (E,) or (k, E) of real numbers and nothing else.")
    vectors = torch.atleast_2d(content.detach().float())
    if not vectors.isfinite().all():
        raise UserError(f"learned_embedding: {path} holds vectors that are no numbers; take another file.")
    return vectors
