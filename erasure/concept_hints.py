"""Hints about unusual concept names, before any work starts. Later, `erasure.concept_check` measures whether the model knows them."""

import difflib
import re
from collections.abc import Sequence

from erasure.concept import Concept
from erasure.families.base import DiffusionModel
from erasure.loading.model_source import SHIPPED_MODELS
from erasure.pocket.captions import OBJECT_WORDS, STYLE_WORDS, vocabulary


def find_hints(model: DiffusionModel, concepts: Sequence[Concept]) -> list[str]:
    """Return one hint for everything unusual about the names; empty if there is nothing."""
    hints = []
    for concept in concepts:
        hints += [*hint_comma(concept.name), *hint_length(model, concept.name)]
        hints += hint_unknown_words(concept.name) if model.source in SHIPPED_MODELS else []
    return hints


def hint_comma(name: str) -> list[str]:
    """Return a hint if the name has a comma: two concepts are often written as one."""
    parts = [part.strip() for part in name.split(",") if part.strip()]
    if len(parts) < 2:
        return []
    return [f"{name!r} is erased as one concept with a comma in its name; separate several concepts with ;, as in {'; '.join(parts)!r}."]


def hint_length(model: DiffusionModel, name: str) -> list[str]:
    """Return a hint if the name does not fit the text encoder's context, which cuts off the rest and the prompt around it."""
    length, max_length = len(model.tokenize(name)), model.context_length - 2  # without the start and end tokens
    if length <= max_length:
        return []
    return [f"{name!r} has {length:,} tokens, the text encoder reads {max_length}; the rest is cut off and is not erased."]


def hint_unknown_words(name: str) -> list[str]:
    """Return a hint if the name has words that the captions of pocket and pocket-flow never used."""
    vocabulary_words = vocabulary()
    unknown_words = [word for word in re.findall(r"[^\W_][\w'-]*", name.lower()) if word not in vocabulary_words]
    if not unknown_words:
        return []
    known_names = [known_name for words in (*STYLE_WORDS.values(), *OBJECT_WORDS.values()) for known_name in words.names]
    closest = difflib.get_close_matches(name.lower(), known_names, n=1)
    hint = (
        f" Did you mean {closest[0]!r}?"
        if closest
        else f" It knows {', '.join(words.names[0] for words in STYLE_WORDS.values())} and others."
    )
    return [f"the pocket model never saw {', '.join(map(repr, unknown_words[:5]))} in a caption.{hint}"]
