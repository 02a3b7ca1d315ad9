"""What looks odd about a concept before any work starts. `erasure.concept_check` measures later whether the model knows it."""

import difflib
import re
from collections.abc import Sequence

from erasure.concept import Concept
from erasure.families.base import DiffusionModel
from erasure.pocket.captions import OBJECT_WORDS, STYLE_WORDS, vocabulary


def doubts(model: DiffusionModel, concepts: Sequence[Concept]) -> list[str]:
    """One sentence for every oddity; none where a name looks as it should."""
    found = []
    for concept in concepts:
        found += [*comma(concept.name), *too_long(model, concept.name)]
        found += unknown_to_pocket(concept.name) if model.source == "pocket" else []
    return found


def comma(name: str) -> list[str]:
    """Two concepts are often written as one."""
    parts = [part.strip() for part in name.split(",") if part.strip()]
    if len(parts) < 2:
        return []
    return [f"{name!r} is erased as one concept with a comma in its name; several concepts are separated by ;, as in {'; '.join(parts)!r}."]


def too_long(model: DiffusionModel, name: str) -> list[str]:
    """What does not fit the text encoder's context is cut off, and sentences around the name with it."""
    length, context = len(model.tokens(name)), model.context - 2  # without the start and the end
    if length <= context:
        return []
    return [f"{name!r} has {length:,} tokens, the text encoder reads {context}; the rest is cut off and is not erased."]


def unknown_to_pocket(name: str) -> list[str]:
    """The shipped model saw a closed list of words."""
    words = vocabulary()
    missing = [word for word in re.findall(r"[^\W_][\w'-]*", name.lower()) if word not in words]
    if not missing:
        return []
    names = [known for said in (*STYLE_WORDS.values(), *OBJECT_WORDS.values()) for known in said.names]
    near = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else f" It knows {', '.join(said.names[0] for said in STYLE_WORDS.values())} and others."
    return [f"the pocket model never saw {', '.join(map(repr, missing[:5]))} in a caption.{hint}"]
