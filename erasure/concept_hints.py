"""What looks odd about a concept before any work starts. `erasure.concept_check` measures later whether the model knows it."""

import difflib
import re
from collections.abc import Sequence

from erasure.concept import Concept
from erasure.families.base import DiffusionModel
from erasure.pocket.captions import OBJECT_WORDS, STYLE_WORDS, vocabulary


def find_hints(model: DiffusionModel, concepts: Sequence[Concept]) -> list[str]:
    """One sentence for every oddity; none where a name looks as it should."""
    hints = []
    for concept in concepts:
        hints += [*hint_comma(concept.name), *hint_length(model, concept.name)]
        hints += hint_unknown_words(concept.name) if model.source == "pocket" else []
    return hints


def hint_comma(name: str) -> list[str]:
    """Two concepts are often written as one."""
    parts = [part.strip() for part in name.split(",") if part.strip()]
    if len(parts) < 2:
        return []
    return [f"{name!r} is erased as one concept with a comma in its name; several concepts are separated by ;, as in {'; '.join(parts)!r}."]


def hint_length(model: DiffusionModel, name: str) -> list[str]:
    """What does not fit the text encoder's context is cut off, and sentences around the name with it."""
    length, max_length = len(model.tokenize(name)), model.context_length - 2  # without the start and the end
    if length <= max_length:
        return []
    return [f"{name!r} has {length:,} tokens, the text encoder reads {max_length}; the rest is cut off and is not erased."]


def hint_unknown_words(name: str) -> list[str]:
    """The shipped model saw a closed list of words."""
    vocabulary_words = vocabulary()
    unknown_words = [word for word in re.findall(r"[^\W_][\w'-]*", name.lower()) if word not in vocabulary_words]
    if not unknown_words:
        return []
    known_names = [known_name for concept_words in (*STYLE_WORDS.values(), *OBJECT_WORDS.values()) for known_name in concept_words.names]
    closest = difflib.get_close_matches(name.lower(), known_names, n=1)
    hint = (
        f" Did you mean {closest[0]!r}?"
        if closest
        else f" It knows {', '.join(concept_words.names[0] for concept_words in STYLE_WORDS.values())} and others."
    )
    return [f"the pocket model never saw {', '.join(map(repr, unknown_words[:5]))} in a caption.{hint}"]
