"""Label leakage: which concept was erased, guessed from what an edit changes. Whoever has both weights can ask this of every word."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from erasure.edits import Edit, apply_edits
from erasure.edits.deltas import apply_delta
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.families.batching import images_at_once
from erasure.pocket.captions import vocabulary
from eval.records.fields import Count

NOISES = 4  # images whose predictions are compared
MAX_BATCH = 64  # predictions at once
SHOWN_WORDS = 8
CONTROL = "random edit"


@dataclass(frozen=True, kw_only=True)
class ConceptRank:
    """Where a concept's name stands among the words, from 1; by chance it stands in the middle."""

    concept: str
    rank: Count


@dataclass(frozen=True, kw_only=True)
class LeakageReading:
    """One reading of one edit, or of the control: a random edit of equal norm, tensor by tensor."""

    edit: str
    reading: str
    words: Count
    ranks: tuple[ConceptRank, ...]
    top: tuple[str, ...]  # the words that moved most


@torch.no_grad()
def measure_leakage(model: DiffusionModel, edit: Edit, words: Sequence[str] = (), seed: int = 0) -> tuple[LeakageReading, ...]:
    """Rank the names of what an edit erases among words, by how far it moves each.

    projections: |W' c' - W c|^2 with c the word's last token, over the mean of |W c|^2 of all words; averaged over the matrices W that
    read the conditioning. predictions: |eps'(x_t, word) - eps(x_t, word)|^2 at the noisiest time, over the same mean of eps.

    Args:
        words: to rank among; empty for the model's vocabulary (`list_words`). The concepts' names are added.
        seed: of the noise and of the control.

    Raises:
        UserError: a guidance edit, which changes no weights.
    """
    if edit.info.product == "guidance":
        raise UserError(f"{edit.name} changes no weights; its record names what it erases.")
    names = [str(concept["name"]) for concept in edit.info.concepts]
    candidates = list(dict.fromkeys([*names, *(words or list_words(model))]))
    readings = []
    for title, changed in ((edit.name, edit), (CONTROL, randomize(model, edit, seed))):
        for reading, score in (("projections", project), ("predictions", predict)):
            values = compare(model, changed, partial(score, words=candidates, seed=seed))
            readings.append(rank_names(title, reading, names, candidates, values))
    return tuple(readings)


def list_words(model: DiffusionModel) -> list[str]:
    """Return the words of a model: pocket's vocabulary, else every token that is a word of three letters or more by itself."""
    if model.family.startswith("pocket"):
        return sorted(vocabulary())
    tokens = sorted(model.word_tokenizer.get_vocab())
    words = [token.removesuffix("</w>").removeprefix("▁") for token in tokens if token.endswith("</w>") or token.startswith("▁")]
    return list(dict.fromkeys(word for word in words if re.fullmatch(r"[a-z]{3,}", word)))


def compare(model: DiffusionModel, edit: Edit, read: Callable[[DiffusionModel], list[Tensor]]) -> Tensor:
    """Return how far an edit moves every word (N,): the mean over readings (N, D) of |after - before|^2 / mean |before|^2."""
    before = read(model)
    with apply_edits(model, [edit]):
        after = read(model)
    shares = [(b - a).square().sum(1) / a.square().sum(1).mean().clamp(min=1e-30) for a, b in zip(before, after, strict=True)]
    return torch.stack(shares).mean(0)


def project(model: DiffusionModel, words: Sequence[str], seed: int) -> list[Tensor]:
    """Return what every matrix that reads the conditioning makes of the words' last tokens (N, O)."""
    parameters, projections = model.parameters(), list[Tensor]()
    cond = model.encode(words)
    index = torch.tensor([model.last_token_indices(word)[0] for word in words], device=cond.sequence.device)
    last = cond.sequence[torch.arange(len(words), device=index.device), index].float()
    for name, part in model.closed_form_layers().items():
        rows = last if part == "sequence" else cond.pooled
        if rows is not None:
            projections.append((rows.float() @ parameters[name].detach().float().T).cpu())
    return projections


def predict(model: DiffusionModel, words: Sequence[str], seed: int) -> list[Tensor]:
    """Return the predictions for every word, on noise at the noisiest time (N, NOISES C h w)."""
    noise = model.sample_noise([seed + i for i in range(NOISES)])
    t = torch.full((NOISES,), model.schedule.sampler(2).times[0], device=model.device)
    count = max(1, images_at_once(model, MAX_BATCH) // NOISES)
    rows = list[Tensor]()
    for start in range(0, len(words), count):
        chunk = words[start : start + count]
        cond = model.encode([word for word in chunk for _ in range(NOISES)])
        predictions = model.predict(noise.repeat(len(chunk), 1, 1, 1), t.repeat(len(chunk)), cond)
        rows.append(predictions.reshape(len(chunk), -1).cpu())
    return [torch.cat(rows)]


def randomize(model: DiffusionModel, edit: Edit, seed: int) -> Edit:
    """Return an edit that moves the same parameters by random differences of equal norm, tensor by tensor."""
    generator, parameters, tensors = torch.Generator().manual_seed(seed), model.parameters(), dict[str, Tensor]()
    for name in sorted(edit.moved_parameters()):
        value = parameters[name].detach().cpu().float()
        norm = (apply_delta(edit.tensors, name, value).float() - value).norm()
        direction = torch.randn(value.shape, generator=generator)
        tensors[name] = value + norm / direction.norm() * direction
    return Edit(tensors, edit.info)


def rank_names(edit: str, reading: str, names: Sequence[str], words: Sequence[str], values: Tensor) -> LeakageReading:
    """Return the rank of every name; words that moved equally far share the worst of their ranks."""
    ranks = [ConceptRank(concept=name, rank=int((values >= values[words.index(name)]).sum())) for name in names]
    top = [words[i] for i in values.argsort(descending=True)[:SHOWN_WORDS].tolist()]
    return LeakageReading(edit=edit, reading=reading, words=len(words), ranks=tuple(ranks), top=tuple(top))


def read_word_file(path: Path) -> tuple[str, ...]:
    """Return the words of a file, one a line.

    Raises:
        UserError: it cannot be read, or has fewer than two.
    """
    try:
        words = tuple(dict.fromkeys(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a list of words, one a line: {error}") from error
    if len(words) < 2:
        raise UserError(f"{path} has {len(words)} words; a rank needs two or more.")
    return words
