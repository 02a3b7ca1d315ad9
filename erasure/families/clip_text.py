"""Text encoders as several families use them: prompts to token ids, and soft tokens in the space of the input embeddings."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from erasure.errors import UserError


def tokenize_prompts(
    tokenizer: Any, texts: Sequence[str], context_length: int, soft_tokens: int = 0, start: int = 1
) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask (B, L) with `soft_tokens` free places after the first `start` tokens.

    CLIP's start token comes before the free places. Its end token is never cut off.

    Raises:
        UserError: the soft tokens leave no room for a prompt.
    """
    max_length = context_length - soft_tokens
    if max_length < start + 1:
        raise UserError(f"{soft_tokens} soft tokens leave no room for a prompt; the context has {context_length}.")
    encoding = tokenizer(list(texts), padding="max_length", max_length=max_length, truncation=True, return_tensors="pt")
    ids, mask = encoding.input_ids, encoding.attention_mask
    if soft_tokens:
        parts = (ids, torch.zeros_like(ids[:, :1])), (mask, torch.ones_like(mask[:, :1]))  # any id will do, its embedding is replaced
        ids, mask = (torch.cat((part[:, :start], free.expand(-1, soft_tokens), part[:, start:]), 1) for part, free in parts)
    return ids, mask


@contextmanager
def insert_soft_tokens(embedding: Any, prefix: Tensor | None, start: int = 1) -> Iterator[None]:
    """Put soft tokens (k, E) or (B, k, E) into the free places of `tokenize_prompts` while the block runs.

    Args:
        embedding: the layer of the text encoder that embeds token ids.
    """
    if prefix is None:
        yield
        return
    soft_tokens = prefix.shape[-2]

    def insert(module: Any, args: Any, out: Tensor) -> Tensor:
        inserted = prefix.to(out.dtype).expand(len(out), -1, -1)
        return torch.cat((out[:, :start], inserted, out[:, start + soft_tokens :]), 1)

    hook = embedding.register_forward_hook(insert)
    try:
        yield
    finally:
        hook.remove()


def context_length_of(tokenizer: Any, encoder: Any) -> int:
    """Return how many tokens a CLIP encoder reads, start and end included; the tokenizer's config may not give a limit."""
    return int(min(tokenizer.model_max_length, encoder.config.max_position_embeddings))


def token_ids_of(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text, without start and end tokens and without truncation."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def expand_embeddings(pipe: Any, text: str, tokenizer: Any) -> str:
    """Expand textual inversions: one of several vectors is one word in a prompt, but several tokens to the text encoder."""
    converted: str = pipe.maybe_convert_prompt(text, tokenizer)
    return converted
