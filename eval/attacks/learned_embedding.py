"""Learned embedding: a word that someone else learned for the concept, read from a file, asks for it without its name (black box)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from erasure.errors import UserError
from eval.attacks.base import AttackContext, AttackQuery, NotApplicable, Prepared, PromptAttack
from eval.judges._classifier import read_tensors

SUFFIXES = (".safetensors", ".bin", ".pt")


@dataclass(frozen=True, kw_only=True)
class LearnedEmbedding(PromptAttack):
    """A shared textual inversion (Gal et al., arXiv:2208.01618), put before `context.stripped_prompts`, which never name the concept.

    Nothing is searched on this model: every round asks the same, from other noise. What was learned on another model is a lower bound on
    what concept_inversion would learn here.

    Raises:
        UserError: the file is not such an embedding.
    """

    paper: ClassVar[str] = "arXiv:2208.01618"
    threat: ClassVar[str] = "has a word that was learned for the concept on another model; can prompt"

    file: str  # one tensor (E,) or (k, E) in .safetensors, or in .bin or .pt without code

    def __post_init__(self) -> None:
        read_embedding(Path(self.file))  # so that a wrong file is reported when the suite is read, not hours later

    def prepare(self, context: AttackContext) -> Prepared:
        """Return "vectors" (k, E), fp32: the vectors of the file.

        Raises:
            NotApplicable: there are no prompts without the concept.
            UserError: the vectors do not have the model's width.
        """
        if len(context.stripped_prompts) != len(context.prompts):
            raise NotApplicable(
                "learned_embedding asks without the concept's name, and this suite does not say what its prompts are without it."
            )
        vectors, width = read_embedding(Path(self.file)), context.model.token_embeddings().shape[1]
        if vectors.shape[1] != width:
            raise UserError(f"learned_embedding: the vectors of {self.file} have width {vectors.shape[1]}, this model's have {width}.")
        return {"vectors": vectors}

    def queries(self, context: AttackContext, chunk: Sequence[int], prepared: Prepared) -> Iterator[AttackQuery]:
        prompts, vectors = [context.stripped_prompts[i] for i in chunk], prepared["vectors"].to(context.model.device)
        for _ in range(context.rounds):
            yield AttackQuery(prompts, vectors, [f"(the word of {Path(self.file).name}) {prompt}" for prompt in prompts])


def read_embedding(path: Path) -> Tensor:
    """Read the vectors (k, E), fp32, of an embedding's file.

    Raises:
        UserError: the file does not exist, holds code or more than one tensor, or its tensor has another shape, NaN or Inf.
    """
    if path.suffix not in SUFFIXES or not path.is_file():
        raise UserError(f"learned_embedding: file {str(path)!r} does not exist or is not a {', '.join(SUFFIXES)} file; name one.")
    content: object = read_tensors(path, "")
    if isinstance(content, dict) and len(content) == 1:
        (content,) = content.values()
    if not (isinstance(content, Tensor) and content.is_floating_point() and content.ndim in (1, 2) and content.numel()):
        raise UserError(f"learned_embedding: {path} must hold one tensor (E,) or (k, E) of real numbers and nothing else.")
    vectors = content.detach().float().reshape(-1, content.shape[-1])
    if not vectors.isfinite().all():
        raise UserError(f"learned_embedding: {path} holds vectors with NaN or Inf; use another file.")
    return vectors
