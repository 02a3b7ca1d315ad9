"""What attacks that search over tokens share: the vocabulary, and a query that asks both with text and with token ids."""

from collections.abc import Sequence

import torch
from torch import Tensor

from erasure.families.base import DiffusionModel
from eval.attacks.base import AttackQuery, TokenPrefix


def searchable_token_ids(model: DiffusionModel) -> Tensor:
    """Return the ids of the tokens that a text can hold (W,), int64: all but start, end and padding."""
    special = model.special_token_ids
    return torch.tensor([i for i in range(len(model.token_embeddings())) if i not in special])


def query_from_ids(model: DiffusionModel, ids: Tensor, prompts: Sequence[str]) -> AttackQuery:
    """Put token ids (B, k) before B prompts, as the text that the ids decode to.

    A tokenizer may read that text as other ids: word pieces merge, and some ids decode to no text at all. An attack's success is what the
    text brings back; the ids themselves go along in `token_prefix`.
    """
    texts, fails_round_trip = [], []
    for token_ids, prompt in zip(ids.tolist(), prompts, strict=True):
        texts.append(f"{model.detokenize(token_ids)} {prompt}".strip())
        fails_round_trip.append(model.tokenize(texts[-1]) != [*token_ids, *model.tokenize(prompt)])
    vocabulary = model.token_embeddings()
    return AttackQuery(texts, token_prefix=TokenPrefix(list(prompts), vocabulary[ids.to(vocabulary.device)], fails_round_trip))
