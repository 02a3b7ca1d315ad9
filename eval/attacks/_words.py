"""What the attacks that choose tokens choose from, and how their finds are asked: as text that a person can type, and as token ids."""

from collections.abc import Sequence

import torch
from torch import Tensor

from erasure.families.base import DiffusionModel
from eval.attacks.base import Ask, Tokens


def words(model: DiffusionModel) -> Tensor:
    """Ids of the tokens that a text can hold (W,): all but start, end and padding."""
    special = set(model.pipe.tokenizer.all_special_ids)
    return torch.tensor([i for i in range(len(model.vocabulary())) if i not in special])


def typed(model: DiffusionModel, ids: Tensor, prompts: Sequence[str]) -> Ask:
    """Found ids (B, k) before the words of B prompts, as the text they stand for.

    A tokenizer need not read that text as the same ids: pieces of words join, and some ids stand for no text at all. What counts as an
    attack's success is what the text brings back; the ids themselves go along in `tokens`.
    """
    texts, differ = [], []
    for row, prompt in zip(ids.tolist(), prompts, strict=True):
        texts.append(f"{model.spelled(row)} {prompt}".strip())
        differ.append(model.tokens(texts[-1]) != [*row, *model.tokens(prompt)])
    vocabulary = model.vocabulary()
    return Ask(texts, tokens=Tokens(list(prompts), vocabulary[ids.to(vocabulary.device)], differ))
