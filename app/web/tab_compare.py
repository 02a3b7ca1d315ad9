"""Compare: one prompt, before and after, from the same noise."""

import random
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from app.web import pictures
from app.web.studio import FIRST, PICTURES, PROMPT_LIMIT, STEPS, Comparison, Studio
from erasure.config.seeds import read_seed
from erasure.errors import UserError
from eval.suites.cases import cases
from eval.suites.suite import load_suite, suite_names


def tab(studio: Studio) -> gr.Dropdown:
    """Build the tab; returns the list of edits, which other tabs refresh."""
    with gr.Row(elem_classes="compare"):
        with gr.Column(scale=4, min_width=280):
            prompt = gr.Textbox(
                FIRST if studio.is_pocket else "a painting by Van Gogh",
                label="Prompt",
                lines=2,
                max_length=PROMPT_LIMIT,
                elem_id="prompt",
            )
            known = list(studio.edits())
            edits = gr.Dropdown(known, value=known[-1:], multiselect=True, allow_custom_value=True, label="Edits to apply", elem_id="edits")
            with gr.Row():
                seed = gr.Textbox("7", label="Seed", max_lines=1, max_length=20, min_width=90)  # a number of JavaScript has 53 bits
                count = gr.Slider(1, PICTURES, 4, step=1, label="Pictures", min_width=120)
            draw = gr.Button("Compare", variant="primary", elem_id="compare")
            with gr.Accordion("More", open=False):
                steps = gr.Slider(1, STEPS, 25, step=1, label="Steps")
                guidance = gr.Slider(0, 15, studio.model.guidance, step=0.5, label="Guidance")
                strength = gr.Slider(-1, 2, 1, step=0.05, label="Strength of the edits")
                reveal = gr.Checkbox(False, label="Show sensitive pictures unblurred")
                suite = gr.Dropdown(suite_names(complete=True), value=None, label="A prompt from a suite")
            gr.HTML(what_is_known(studio), elem_classes="known")
        with gr.Column(scale=7, min_width=320):
            note = gr.HTML(elem_id="note")
            with gr.Row():
                with gr.Column(scale=5, min_width=300):
                    slider = gr.ImageSlider(
                        label="before | after", format="png", type="pil", max_height=340, elem_id="slider", buttons=["fullscreen"]
                    )
                with gr.Column(scale=3, min_width=200):
                    read = gr.HTML(elem_id="readings")
                    map_ = gr.Image(label="difference", format="png", type="pil", height=200, elem_id="difference", buttons=[])
            grid = gr.Gallery(
                label="each seed: before, after",
                columns=4,
                height=170,
                format="png",
                object_fit="contain",
                elem_id="grid",
                buttons=[],
                allow_preview=False,
            )
    state = gr.State(None, time_to_live=3600)
    inputs = [prompt, edits, seed, count, steps, guidance, strength, reveal]
    click: dict[str, Any] = {"outputs": [slider, map_, read, grid, note, state], "concurrency_id": "model", "concurrency_limit": 1}
    click["trigger_mode"] = "always_last"  # a click while the other seeds are still being drawn counts
    handler = comparing(studio)
    draw.click(handler, inputs, api_name="compare", **click)
    prompt.submit(handler, inputs, api_visibility="private", **click)
    grid.select(picked, [state], [slider, map_, read], api_visibility="private", show_progress="hidden")
    suite.change(suite_prompt, suite, prompt, api_visibility="private")
    return edits


def comparing(studio: Studio) -> Any:
    """The handler of the button."""

    def compare(
        prompt: str, edits: list[str], seed: str, pictures_: int, steps: int, guidance: float, strength: float, reveal: bool = False
    ) -> Iterator[tuple[Any, ...]]:
        """Draw a prompt with the base model and with edits applied, from the same noise; the first seed comes before the others.

        Returns before and after of the first seed, their difference, the judges' readings, a grid of all seeds, and a note.
        """
        try:
            asked = (read_seed(seed or "0"), int(pictures_), int(steps), float(guidance), float(strength))
            for found in studio.compare(prompt or "", edits or [], *asked):
                found = replace(found, sensitive=found.sensitive and not reveal)
                pairs = zip(found.base, found.erased, found.seeds, strict=True)
                grid = [(pictures.beside(b, e, blurred(found, i)), f"seed {s}") for i, (b, e, s) in enumerate(pairs)]
                yield *one(found, 0), grid, noted(studio, prompt or "", edits or [], found), found
        except UserError as error:
            raise gr.Error(str(error), duration=12) from None

    return compare


def blurred(found: Comparison, i: int) -> bool:
    return found.sensitive or i in found.hidden


def one(found: Comparison, i: int) -> tuple[Any, Any, str]:
    pair = (pictures.shown(found.base[i], blurred(found, i)), pictures.shown(found.erased[i], blurred(found, i)))
    difference = found.difference(i)
    # equal pictures have no map; a black one would also be one cached file that every such answer writes while others read it
    map_ = pictures.heat(difference) if difference.any() and not blurred(found, i) else None
    return pair, map_, pictures.readings(found.readings[i]) if found.readings else ""


def picked(found: Comparison | None, event: gr.SelectData) -> tuple[Any, ...]:
    if found is None:
        raise gr.Error("Press Compare again: these pictures have expired.")
    return one(found, int(event.index))


def noted(studio: Studio, prompt: str, edits: list[str], found: Comparison) -> str:
    """What a reader should know about this comparison."""
    said = []
    if words := studio.unknown_words(prompt):
        quoted = ", ".join(f"“{escape(word)}”" for word in words[:8])
        said.append(f"This small model never saw {quoted}{' and others' if len(words) > 8 else ''} in a caption; expect a guess.")
    if not edits:
        said.append("No edit is applied, so both sides are the base model.")
    if found.hidden:
        said.append(f"The safety checker hides {len(found.hidden)} of {len(found.seeds)} pairs.")
    if found.sensitive:
        said.append("Sensitive pictures are blurred; “More” has a switch.")
    return "".join(f"<p>{line}</p>" for line in said)


def what_is_known(studio: Studio) -> str:
    if not studio.is_pocket:
        return f"<p>{escape(studio.source)}</p>"
    parts = [f"<dt>{kind}</dt><dd>{escape(', '.join(names))}</dd>" for kind, names in studio.known_names().items()]
    return f"<details><summary>What this model knows</summary><dl>{''.join(parts)}</dl></details>"


def suite_prompt(name: str | None) -> str:
    """Any prompt of a suite; another with every choice."""
    if not name:
        return gr.skip()
    return random.choice(cases(load_suite(name), [], "smoke")).prompt
