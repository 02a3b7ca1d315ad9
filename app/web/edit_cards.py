"""The chosen edits as cards: images, method, rates of the newest audit, and a slider for the strength."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app.html_templates import render_html
from app.method_words import title_of_method
from app.web.comparison import MAX_EDITS, EditChoice
from app.web.edit_list import EditAudit, ListedEdit
from app.web.images import data_url
from app.web.studio import Studio
from erasure.errors import UserError
from eval.records.rates import RateName
from eval.report.numbers import format_percent

RATES = {RateName.UA: "erased", RateName.IRA: "same kind kept", RateName.CRA: "other kind kept"}


@dataclass(frozen=True)
class EditCards:
    """Places for the cards of chosen edits, in their order; the others are hidden."""

    columns: list[Any]
    texts: list[Any]
    sliders: list[Any]
    names: Any  # state: the edits whose strengths the sliders hold

    @property
    def all(self) -> list[Any]:
        return [*self.columns, *self.texts, *self.sliders, self.names]


def build_cards() -> EditCards:
    """Build the places, all hidden."""
    columns, texts, sliders = [], [], []
    for i in range(MAX_EDITS):
        with gr.Column(elem_classes="edit-card", min_width=200, visible=False) as column:
            texts.append(gr.HTML())
            sliders.append(gr.Slider(-1, 2, 1.0, step=0.05, label="Strength", interactive=True, elem_id=f"strength-{i}"))
        columns.append(column)
    return EditCards(columns, texts, sliders, gr.State(()))


def fill_cards(studio: Studio, source: str, choices: Sequence[EditChoice]) -> list[Any]:
    """Return the values of `EditCards.all` for chosen edits; those beyond `MAX_EDITS` have no card, and comparing them is refused."""
    choices = choices[:MAX_EDITS]
    try:
        edits = studio.edits(source) if choices else {}
    except UserError:
        edits = {}  # the model cannot be loaded, which its list has said
    audits = studio.audits() if choices else {}
    hidden = MAX_EDITS - len(choices)
    texts = [
        render_card(edits[name], audits.get(str(edits[name].folder))) if name in edits else render_unknown(name) for name, _ in choices
    ]
    sliders = [gr.Slider(value=strength, label=f"Strength of {name}") for name, strength in choices]
    columns = [gr.Column(visible=True) for _ in choices] + [gr.Column(visible=False) for _ in range(hidden)]
    names = tuple(name for name, _ in choices)
    return [*columns, *texts, *[""] * hidden, *sliders, *[gr.skip() for _ in range(hidden)], names]


def refresh_cards(studio: Studio, source: str, names: Sequence[str]) -> list[Any]:
    """Return the values of `EditCards.all` for cards that are there already, with news of audits; their sliders stay as they are."""
    columns_and_texts = fill_cards(studio, source, [EditChoice(name) for name in names])[: 2 * MAX_EDITS]
    return [*columns_and_texts, *[gr.skip() for _ in range(MAX_EDITS)], gr.skip()]


def pair_strengths(names: Sequence[str], cards: Sequence[str], strengths: Sequence[float]) -> list[EditChoice]:
    """Return chosen edits with the strengths of their sliders; an edit that was chosen a moment ago has none yet: strength 1."""
    by_name = dict(zip(cards, strengths, strict=False))
    return [EditChoice(name, float(by_name.get(name, 1.0))) for name in names]


def render_card(edit: ListedEdit, audit: EditAudit | None) -> str:
    """Render one edit."""
    rates = [(text, name, format_percent(audit.rates[name].estimate)) for name, text in RATES.items() if audit and name in audit.rates]
    return render_html(
        "edit_card",
        name=edit.concepts,
        method=title_of_method(edit.info.method),
        image=data_url(edit.card_image) if edit.card_image else "",
        sensitive=edit.is_sensitive,
        rates=rates,
        verdict=audit.verdict if audit else "",
    )


def render_unknown(name: str) -> str:
    return render_html("edit_card", name=name, method="This edit is not on the list.", image="", sensitive=False, rates=[], verdict="")
