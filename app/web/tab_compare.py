"""Compare tab: one prompt before and after erasure, from the same noise."""

import random
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from app.web import images
from app.web.studio import FIRST_PROMPT, MAX_IMAGES, MAX_PROMPT_LENGTH, MAX_STEPS, Comparison, Studio
from erasure.config.seeds import parse_seed
from erasure.errors import UserError
from eval.suites.cases import suite_cases
from eval.suites.suite import load_suite, suite_names


def tab(studio: Studio) -> gr.Dropdown:
    """Build the tab and return its list of edits, which the page refreshes."""
    with gr.Row(elem_classes="compare"):
        with gr.Column(scale=4, min_width=280):
            first_prompt = FIRST_PROMPT if studio.is_pocket else "a painting by Van Gogh"
            prompt = gr.Textbox(first_prompt, label="Prompt", lines=2, max_length=MAX_PROMPT_LENGTH, elem_id="prompt")
            edit_names = list(studio.edits())
            edits = gr.Dropdown(
                edit_names, value=edit_names[-1:], multiselect=True, allow_custom_value=True, label="Edits to apply", elem_id="edits"
            )
            with gr.Row():
                # seeds are text, because JavaScript numbers have 53 bits
                seed = gr.Textbox("7", label="Seed", max_lines=1, max_length=20, min_width=90)
                count = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Images", min_width=120)
            button = gr.Button("Compare", variant="primary", elem_id="compare")
            steps, guidance, strength, reveal, suite = build_settings(studio)
            gr.HTML(describe_model(studio), elem_classes="model-info")
        with gr.Column(scale=7, min_width=320):
            note = gr.HTML(elem_id="note")
            with gr.Row():
                with gr.Column(scale=5, min_width=300):
                    slider = gr.ImageSlider(
                        label="before | after", format="png", type="pil", max_height=340, elem_id="slider", buttons=["fullscreen"]
                    )
                with gr.Column(scale=3, min_width=200):
                    scores = gr.HTML(elem_id="scores")
                    difference = gr.Image(label="difference", format="png", type="pil", height=200, elem_id="difference", buttons=[])
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
    event_options: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
    event_options["outputs"] = [slider, difference, scores, grid, note, state]
    event_options["trigger_mode"] = "always_last"  # a click counts while the other seeds are still being generated
    handler = make_compare_handler(studio)
    button.click(handler, inputs, api_name="compare", **event_options)
    prompt.submit(handler, inputs, api_visibility="private", **event_options)
    grid.select(show_selected, [state], [slider, difference, scores], api_visibility="private", show_progress="hidden")
    suite.change(pick_suite_prompt, suite, prompt, api_visibility="private")
    return edits


def build_settings(studio: Studio) -> tuple[Any, ...]:
    """Build the less common settings: steps, guidance, strength, whether to reveal sensitive images, and a suite for prompts."""
    with gr.Accordion("More", open=False):
        steps = gr.Slider(1, MAX_STEPS, 25, step=1, label="Steps")
        guidance = gr.Slider(0, 15, studio.model.default_guidance, step=0.5, label="Guidance")
        strength = gr.Slider(-1, 2, 1, step=0.05, label="Strength of the edits")
        reveal = gr.Checkbox(False, label="Show sensitive images unblurred")
        suite = gr.Dropdown(suite_names(complete=True), value=None, label="A prompt from a suite")
    return steps, guidance, strength, reveal, suite


def make_compare_handler(studio: Studio) -> Any:
    """Return the handler of the Compare button."""

    def compare(
        prompt: str, edits: list[str], seed: str, image_count: int, steps: int, guidance: float, strength: float, reveal: bool = False
    ) -> Iterator[tuple[Any, ...]]:
        """Generate a prompt with the base model and with edits applied, from the same noise; the first seed comes before the others.

        Returns before and after of the first seed, their difference, the judge scores, a grid of all seeds, and a note.
        """
        try:
            settings = (parse_seed(seed or "0"), int(image_count), int(steps), float(guidance), float(strength))
            for comparison in studio.compare(prompt or "", edits or [], *settings):
                comparison = replace(comparison, sensitive=comparison.sensitive and not reveal)
                pairs = zip(comparison.base, comparison.erased, comparison.seeds, strict=True)
                grid = [(images.side_by_side(b, e, is_blurred(comparison, i)), f"seed {s}") for i, (b, e, s) in enumerate(pairs)]
                yield *render_pair(comparison, 0), grid, describe_comparison(studio, prompt or "", edits or [], comparison), comparison
        except UserError as error:
            raise gr.Error(str(error), duration=12) from None

    return compare


def is_blurred(comparison: Comparison, i: int) -> bool:
    return comparison.sensitive or i in comparison.hidden


def render_pair(comparison: Comparison, i: int) -> tuple[Any, Any, str]:
    pair = (
        images.to_display(comparison.base[i], is_blurred(comparison, i)),
        images.to_display(comparison.erased[i], is_blurred(comparison, i)),
    )
    difference = comparison.difference(i)
    # equal images have no heatmap: a black one would be one cached file that a response writes while others read it
    heatmap = images.to_heatmap(difference) if difference.any() and not is_blurred(comparison, i) else None
    return pair, heatmap, images.render_score_cards(comparison.scores[i]) if comparison.scores else ""


def show_selected(comparison: Comparison | None, event: gr.SelectData) -> tuple[Any, ...]:
    if comparison is None:
        raise gr.Error("Press Compare again: these images have expired.")
    return render_pair(comparison, int(event.index))


def describe_comparison(studio: Studio, prompt: str, edits: list[str], comparison: Comparison) -> str:
    """Return notes on a comparison as HTML."""
    notes = []
    if words := studio.unknown_words(prompt):
        quoted = ", ".join(f"“{escape(word)}”" for word in words[:8])
        notes.append(f"This small model never saw {quoted}{' and others' if len(words) > 8 else ''} in a caption; expect a guess.")
    if not edits:
        notes.append("No edit is applied, so both sides are the base model.")
    if comparison.hidden:
        notes.append(f"The safety checker hides {len(comparison.hidden)} of {len(comparison.seeds)} pairs.")
    if comparison.sensitive:
        notes.append("Sensitive images are blurred; “More” has a switch.")
    return "".join(f"<p>{line}</p>" for line in notes)


def describe_model(studio: Studio) -> str:
    if not studio.is_pocket:
        return f"<p>{escape(studio.source)}</p>"
    parts = [f"<dt>{kind}</dt><dd>{escape(', '.join(names))}</dd>" for kind, names in studio.known_concepts().items()]
    return f"<details><summary>What this model knows</summary><dl>{''.join(parts)}</dl></details>"


def pick_suite_prompt(name: str | None) -> Any:
    """Return a random prompt of a suite; gradio's mark for no change if no suite is chosen."""
    if not name:
        return gr.skip()
    return random.choice(suite_cases(load_suite(name), [], "smoke")).prompt
