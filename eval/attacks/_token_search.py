"""What the attacks that choose tokens choose from, and how their finds are asked: as text that a person can type, and as token ids."""

from collections.abc import Sequence

import torch
from torch import Tensor

from erasure.families.base import DiffusionModel
from eval.attacks.base import AttackQuery, TokenPrefix


def searchable_token_ids(model: DiffusionModel) -> Tensor:
    """Ids of the tokens that a text can hold (W,): all but start, end and padding."""
    special = set(model.pipe.tokenizer.all_special_ids)
    return torch.tensor([i for i in range(len(model.token_embeddings())) if i not in special])


def query_from_ids(model: DiffusionModel, ids: Tensor, prompts: Sequence[str]) -> AttackQuery:
    """Found ids (B, k) before the words of B prompts, as the text they stand for.

    A tokenizer need not read that text as the same ids: pieces of words join, and some ids stand for no text at all. What counts as an
    attack's success is what the text brings back; the ids themselves go along in `tokens`.
    """
    texts, fails_round_trip = [], []
    for token_ids, prompt in zip(ids.tolist(), prompts, strict=True):
        texts.append(f"{model.detokenize(token_ids)} {prompt}".strip())
        fails_round_trip.append(model.tokenize(texts[-1]) != [*token_ids, *model.tokenize(prompt)])
    vocabulary = model.token_embeddings()
    return AttackQuery(texts, token_prefix=TokenPrefix(list(prompts), vocabulary[ids.to(vocabulary.device)], fails_round_trip))
