"""Results as HTML: the slider of a comparison, the table of a sheet, and the strip of what a visitor made before."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from app.html_templates import render_html
from app.web.comparison import CompareRequest, Comparison, EditChoice, Sheet
from app.web.edit_list import ListedEdit
from app.web.images import data_url
from app.web.models import StudioModel
from app.web.results import Result
from app.web.studio import unknown_words
from eval.records.scores import LabelScore, Scores

SMALL = 256  # images narrower than this are enlarged without smoothing
PLACEHOLDER = (
    '<section class="result waiting" aria-busy="true"><p class="sentence">{text}</p>'
    '<div class="stage"><div class="frame pending"></div></div></section>'
)


def image_url(result: Result, name: str) -> str:
    return f"studio/results/{result.id}/images/{name}.png"


def render_waiting(text: str) -> str:
    """Render the place of a result that is being made."""
    return PLACEHOLDER.format(text=escape(text))


def render_empty(text: str) -> str:
    """Render the place of a result that is not there, and say why."""
    return f'<section class="result"><p class="sentence">{escape(text)}</p></section>'


def render_card_images(edit: ListedEdit) -> str:
    """Render the images before and after that an erasure keeps: all that a slow model shows without being asked."""
    assert edit.card_image
    text = f"{edit.name}, right after it was made. Before on the left, after on the right. {edit.card_caption}"
    blur = " blurred" if edit.is_sensitive else ""
    image = f'<img class="card-images" alt="before and after" src="{data_url(edit.card_image)}">'
    return f'<section class="result{blur}" tabindex="0"><p class="sentence">{escape(text)}</p>{image}</section>'


def render_result(result: Result, model: StudioModel) -> str:
    """Render a comparison with all its seeds; the script of the page switches between them."""
    comparison, request = result.content, result.request
    assert isinstance(comparison, Comparison)
    height, width = comparison.base.shape[-2:]
    return render_html(
        "result",
        link=request.link(),
        sentence=describe(request, comparison),
        notes=list_notes(model, request, comparison),
        pairs=[describe_pair(result, comparison, i) for i in range(len(comparison.seeds))],
        missing=request.count - len(comparison.seeds),
        width=width,
        height=height,
        small=width < SMALL,
        download=f"studio/results/{result.id}/download.zip",
    )


@dataclass(frozen=True, kw_only=True)
class PairView:
    """What the template shows of one pair of images."""

    seed: int
    before: str  # addresses of images
    after: str
    difference: str  # empty where the images are equal or hidden
    before_text: str
    after_text: str
    mean_difference: float
    equal: bool
    readings: Sequence[tuple[str, LabelScore, LabelScore]]  # axis, before, after


def describe_pair(result: Result, comparison: Comparison, i: int) -> PairView:
    """Return what the template shows of one pair."""
    blurred, difference = comparison.is_blurred(i), comparison.difference(i)
    before, after = comparison.scores[i] if comparison.scores else (Scores(), Scores())
    axes = (("style", before.style, after.style), ("object", before.object, after.object))
    return PairView(
        seed=comparison.seeds[i],
        before=image_url(result, f"{i}-before"),
        after=image_url(result, f"{i}-after"),
        difference=image_url(result, f"{i}-difference") if difference.any() and not blurred else "",
        before_text=describe_reading(before.style, before.object),
        after_text=describe_reading(after.style, after.object),
        mean_difference=difference.mean().item(),
        equal=not difference.any(),
        readings=[(axis, first, second) for axis, first, second in axes if first and second],
    )


def describe_reading(style: LabelScore | None, object_: LabelScore | None) -> str:
    if not style or not object_:
        return "the image"
    return f"read as {object_.label}, {style.label}"


def describe(request: CompareRequest, comparison: Comparison) -> str:
    """Say in a sentence what is seen."""
    asked = f"“{request.prompt}”" if request.prompt.strip() else "The empty prompt"
    if not request.edits:
        return f"{asked}, made by {request.model}. No edit is applied, so both sides are the same model."
    changed = "the same noise, with " + join_choices(request.edits)
    return f"{asked}. Before: {request.model}. After: the same prompt and {changed}."


def join_choices(choices: Sequence[EditChoice]) -> str:
    names = [choice.name + (f" at strength {choice.strength:g}" if choice.strength != 1 else "") for choice in choices]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def list_notes(model: StudioModel, request: CompareRequest, comparison: Comparison) -> list[str]:
    """Return what a reader should know about a comparison."""
    notes = []
    if words := unknown_words(model, request.prompt):
        quoted = ", ".join(f"“{word}”" for word in words[:8])
        notes.append(f"This small model never saw {quoted}{' and others' if len(words) > 8 else ''} in a caption; expect a guess.")
    if comparison.hidden:
        notes.append(f"The safety checker hides {len(comparison.hidden)} of {len(comparison.seeds)} pairs.")
    if comparison.sensitive:
        notes.append("Sensitive images are blurred. “More settings” has a switch.")
    return notes


def render_sheet(result: Result) -> str:
    """Render a sheet, as far as it is made."""
    sheet, request = result.content, result.request
    assert isinstance(sheet, Sheet)
    rows = [
        {"name": name, "cells": [image_url(result, f"{r}-{c}") for c in range(len(sheet.columns))]}
        for r, name in enumerate(sheet.rows[: len(sheet.images)])
    ]
    edits = join_choices(request.edits) if request.edits else "no edit"
    heading = f"Seed {sheet.seed}, {request.model}: {edits}{' at several strengths' if sheet.title == 'strengths' else ''}."
    return render_html(
        "sheet",
        heading=heading,
        columns=sheet.columns,
        rows=rows,
        missing=len(sheet.rows) - len(sheet.images),
        small=sheet.images[0][0].shape[-1] < SMALL,
        download=f"studio/results/{result.id}/download.zip",
    )


def render_history(past: Sequence[Result]) -> str:
    """Render the comparisons of this session, the newest first."""
    comparisons = [(result, result.content) for result in past if isinstance(result.content, Comparison)]
    items = [
        {
            "id": result.id,
            "image": image_url(result, "0-after"),
            "label": f"{result.request.prompt} · " + (join_choices(result.request.edits) if result.request.edits else "no edit"),
        }
        for result, _ in comparisons
    ]
    small = bool(comparisons) and comparisons[0][1].base.shape[-1] < SMALL
    return render_html("history", past=items, small=small)
