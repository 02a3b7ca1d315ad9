"""CLIP's tokenizer without a download: open_clip contains its byte-pair merges."""

import gzip
import json
from importlib.resources import files
from typing import Any

from transformers import CLIPTokenizer

VOCABULARY_SIZE = 49_408  # 256 bytes, 256 bytes that end a word, 48,894 merges, start and end


def read_clip_merges() -> list[tuple[str, str]]:
    """Return CLIP's 48,894 merges in order (Radford et al., arXiv:2103.00020)."""
    compressed = files("open_clip").joinpath("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(compressed).decode().split("\n")[1 : VOCABULARY_SIZE - 512 - 2 + 1]
    pairs = (line.split() for line in lines)
    return [(first, second) for first, second in pairs]


def build_clip_vocabulary() -> dict[str, int]:
    """Return the token id of each entry: bytes, bytes that end a word, merges, start, end."""
    from open_clip.tokenizer import bytes_to_unicode  # imports torchvision, which not every caller needs

    letters = list(bytes_to_unicode().values())
    merged = [first + second for first, second in read_clip_merges()]
    words = [*letters, *(letter + "</w>" for letter in letters), *merged, "<|startoftext|>", "<|endoftext|>"]
    return {word: i for i, word in enumerate(words)}


def merges_of(tokenizer: Any) -> list[tuple[str, str]]:
    """Return the byte-pair merges of a tokenizer of the tokenizers library."""
    pairs = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return [(first, second) for first, second in pairs]


def build_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> CLIPTokenizer:
    """Build a tokenizer like CLIP's: lower case, byte-pair merges within words, start and end tokens around the text."""
    pairs: Any = merges  # the tokenizers library takes pairs; transformers' annotation says strings
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, **options)
