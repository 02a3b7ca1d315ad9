"""What the model knows about a concept, while it is typed."""

import difflib

from app.html_templates import render_html
from app.web.messages import for_page
from app.web.models import StudioModel
from app.web.studio import Studio, known_concepts, unknown_words
from erasure.concept import Concept
from erasure.concept_check import check_concepts
from erasure.errors import UserError
from erasure.pocket.captions import OBJECT_WORDS, STYLE_WORDS

MAX_CHECKED = 3  # concepts that are measured while someone types


def describe_concept(studio: Studio, source: str, text: str) -> str:
    """Return HTML on every concept that a text names, and what can be chosen instead."""
    names = list(dict.fromkeys(name.strip() for name in text.split(";") if name.strip()))
    if not names:
        return render_html("concept_words", lines=["Name what the model should forget."], chips=[])
    try:
        model = studio.models.get(source)
        hints = studio.jobs.find_hints(source, text)
        lines = hints or [describe_known(model, name) for name in names]
        if not hints and studio.is_fast(model):
            with studio.sampler.exclusive(model):
                checks = check_concepts(model.model, [Concept(name=name) for name in names[:MAX_CHECKED]])
            lines = [describe_influence(check.name, check.concept_influence, check.nonsense_influence) for check in checks]
    except UserError as error:
        return render_html("concept_words", lines=[for_page(str(error))], chips=[])
    return render_html("concept_words", lines=[for_page(line) for line in lines], chips=suggest(model, names[-1]))


def describe_influence(name: str, influence: float, nonsense: float) -> str:
    """Say how much a name moves the model's predictions, beside a nonsense word."""
    times = influence / max(nonsense, 1e-12)
    if times <= 1:
        return f"The model hardly knows “{name}”: a nonsense word moves its predictions as much. Check the spelling, or go on."
    return f"The model knows “{name}”: it moves the predictions {times:.3g} times as much as a nonsense word."


def describe_known(model: StudioModel, name: str) -> str:
    if unknown_words(model, name):
        return f"The model never saw “{name}” in a caption."
    return f"Whether the model knows “{name}” is measured when the erasure begins."


def suggest(model: StudioModel, name: str) -> list[str]:
    """Return concepts that the model was trained on: those close to a name first, without the name itself."""
    known = [concept for names in known_concepts(model).values() for concept in names]
    every = {other: words.names[0] for words in (*STYLE_WORDS.values(), *OBJECT_WORDS.values()) for other in words.names}
    close = [every[match] for match in difflib.get_close_matches(name.lower(), every, n=3)] if known else []
    return [concept for concept in dict.fromkeys([*close, *known]) if concept != name.lower()]


def kind_of(name: str) -> str | None:
    """Return the kind of a concept that the shipped models know; None of any other."""
    name = name.strip().lower()
    if any(name in words.names for words in STYLE_WORDS.values()):
        return "style"
    key = next((key for key, words in OBJECT_WORDS.items() if name in words.names), None)
    return None if key is None else "person" if key in ("ada", "otto") else "object"
