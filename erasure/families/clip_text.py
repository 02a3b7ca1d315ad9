"""CLIP text encoders as several families use them: prompts to token ids, and soft tokens in the space of the input embeddings."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from erasure.errors import UserError


def tokenize_prompts(tokenizer: Any, texts: Sequence[str], context_length: int, soft_tokens: int = 0) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask (B, L) with `soft_tokens` free places after the start token; the end token is never cut off.

    Raises:
        UserError: the soft tokens leave no room for a prompt.
    """
    max_length = context_length - soft_tokens
    if max_length < 2:
        raise UserError(f"{soft_tokens} soft tokens leave no room for a prompt; the context has {context_length}.")
    encoding = tokenizer(list(texts), padding="max_length", max_length=max_length, truncation=True, return_tensors="pt")
    ids, mask = encoding.input_ids, encoding.attention_mask
    if soft_tokens:
        ids, mask = (torch.cat((part[:, :1], part[:, :1].expand(-1, soft_tokens), part[:, 1:]), 1) for part in (ids, mask))
    return ids, mask


@contextmanager
def insert_soft_tokens(encoder: Any, prefix: Tensor | None) -> Iterator[None]:
    """Put soft tokens (k, E) or (B, k, E) into the free places of `tokenize_prompts` while the block runs."""
    if prefix is None:
        yield
        return
    soft_tokens = prefix.shape[-2]

    def insert(module: Any, args: Any, out: Tensor) -> Tensor:
        inserted = prefix.to(out.dtype).expand(len(out), -1, -1)
        return torch.cat((out[:, :1], inserted, out[:, 1 + soft_tokens :]), 1)

    hook = encoder.get_input_embeddings().register_forward_hook(insert)
    try:
        yield
    finally:
        hook.remove()
