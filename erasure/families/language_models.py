"""T5 and Qwen3 as text encoders: frozen, since they hold billions of parameters that a whole field shares."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from erasure.families.clip_text import insert_soft_tokens, token_ids_of, tokenize_prompts

PROMPTS_AT_ONCE = 8
QWEN_LAYERS = (9, 18, 27)  # hidden states that FLUX.2 reads


def encode_t5(encoder: Any, tokenizer: Any, prompts: Sequence[str], length: int, prefix: Tensor | None = None) -> Tensor:
    """Return T5's last hidden states (B, length, D); soft tokens (k, D) or (B, k, D) come first, since T5 has no start token."""
    states = []
    for part, soft in split_prompts(prompts, prefix):
        ids, _ = tokenize_prompts(tokenizer, part, length, 0 if soft is None else soft.shape[-2], start=0)
        with insert_soft_tokens(encoder.encoder.embed_tokens, soft, start=0):
            states.append(encoder(ids.to(encoder.device))[0])
    return torch.cat(states)


def split_prompts(prompts: Sequence[str], prefix: Tensor | None) -> Iterator[tuple[Sequence[str], Tensor | None]]:
    """Yield a few prompts at a time with their soft tokens: an encoder of billions keeps the states of every layer meanwhile."""
    for i in range(0, len(prompts), PROMPTS_AT_ONCE):
        yield prompts[i : i + PROMPTS_AT_ONCE], prefix[i : i + PROMPTS_AT_ONCE] if prefix is not None and prefix.ndim == 3 else prefix


def last_t5_token(tokenizer: Any, text: str, length: int) -> int:
    """Return the position of the last token of a text in T5's states; that of the end token for an empty text."""
    return max(min(len(token_ids_of(tokenizer, text)), length - 1) - 1, 0)


def chat_of(tokenizer: Any, prompt: str) -> str:
    """Return a prompt in the chat template that FLUX.2 asks Qwen3 with."""
    messages = [{"role": "user", "content": prompt}]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return text


def chat_header_length(tokenizer: Any) -> int:
    """Return how many tokens of the chat template come before the prompt."""
    marker = "prompt"
    header = chat_of(tokenizer, marker).partition(marker)[0]
    return len(token_ids_of(tokenizer, header))


def encode_qwen(encoder: Any, tokenizer: Any, prompts: Sequence[str], length: int, prefix: Tensor | None = None) -> Tensor:
    """Return Qwen3's states (B, length, 3 D) of three layers side by side; soft tokens come after the template's header."""
    states, start = [], chat_header_length(tokenizer)
    for part, soft in split_prompts(prompts, prefix):
        texts, soft_tokens = [chat_of(tokenizer, prompt) for prompt in part], 0 if soft is None else soft.shape[-2]
        ids, mask = (tokens.to(encoder.device) for tokens in tokenize_prompts(tokenizer, texts, length, soft_tokens, start))
        with insert_soft_tokens(encoder.get_input_embeddings(), soft, start):
            out = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        states.append(torch.cat([out.hidden_states[layer] for layer in QWEN_LAYERS], -1))
        del out  # the other layers' states
    return torch.cat(states)
