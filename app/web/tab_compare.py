"""Compare tab: one prompt before and after erasure, from the same noise; at several strengths; and several prompts with several edits."""

import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import gradio as gr

from app.html_templates import render_html
from app.web import compare_handlers, result_view
from app.web.comparison import MAX_IMAGES, MAX_PROMPT_LENGTH, MAX_STEPS
from app.web.edit_cards import EditCards, build_cards, refresh_cards
from app.web.events import PRIVATE, READING
from app.web.studio import FIRST_SEED, Studio
from eval.suites.cases import suite_cases
from eval.suites.suite import load_suite, suite_names

EXAMPLES = (
    "a watercolor picture of a house",
    "a neon picture of a boat",
    "a fish in stained glass style",
    "a sketch of a tree",
    "a pixel art picture of ada finch",
)
OTHER_EXAMPLES = ("a painting by Van Gogh", "a photo of a golden retriever", "an oil painting of a castle on a hill")
CHIP_SCRIPT = """
element.addEventListener('click', e => { const b = e.target.closest('button'); if (b) trigger('click', {text: b.textContent}); });
"""
PAST_SCRIPT = """
element.addEventListener('click', e => { const b = e.target.closest('[data-id]'); if (b) trigger('click', {id: b.dataset.id}); });
"""


class CompareTab(NamedTuple):
    """What the page needs of the tab: its list of edits, and the components that a link or another model fills."""

    edits: gr.Dropdown
    examples: gr.HTML
    filled: list[Any]


@dataclass
class Inputs:
    """The components that a comparison is asked for with."""

    prompt: gr.Textbox
    edits: gr.Dropdown
    cards: EditCards
    seed: gr.Textbox
    keep_seed: gr.Checkbox
    count: gr.Slider
    steps: gr.Slider
    guidance: gr.Slider
    reveal: gr.Checkbox

    @property
    def settings(self) -> list[Any]:
        return [self.prompt, self.edits, self.seed, self.keep_seed, self.count, self.steps, self.guidance, self.reveal]

    @property
    def restored(self) -> list[Any]:
        """The components that a link or an earlier result fills."""
        return [self.prompt, self.edits, *self.cards.all, self.seed, self.count, self.steps, self.guidance]


def tab(studio: Studio, model: gr.Dropdown, compare_tab: gr.Tab) -> CompareTab:
    """Build the tab for the model that is chosen on the page."""
    with gr.Row(elem_classes="split"):
        with gr.Column(elem_classes="ask", min_width=280):
            prompt = gr.Textbox(label="Prompt", lines=2, max_length=MAX_PROMPT_LENGTH, elem_id="prompt", interactive=True)
            examples = gr.HTML(elem_id="examples", js_on_load=CHIP_SCRIPT)
            edits = gr.Dropdown([], multiselect=True, allow_custom_value=True, label="Edits to apply", elem_id="edits", interactive=True)
            with gr.Row(elem_classes="buttons"):
                button = gr.Button("Compare", variant="primary", elem_id="compare", min_width=120)
                stop_button = gr.Button("Stop", elem_id="stop", min_width=70)
        with gr.Column(elem_classes="found", min_width=280):
            shown = gr.HTML(result_view.render_waiting("The studio prepares its first erasure."), elem_id="result")
            history = gr.HTML(elem_id="history", js_on_load=PAST_SCRIPT)
        with gr.Column(elem_classes="adjust", min_width=280):
            with gr.Column(elem_id="cards"):
                cards = build_cards()
            inputs, dice, suite = build_settings(prompt, edits, cards)
    prompts, strengths_button, grid_button, sheet = build_sheets()
    past = gr.State([])
    compare, make_sheet = compare_handlers.make_compare(studio), compare_handlers.make_sheet(studio)
    values = [past, model, *inputs.settings, cards.names, *cards.sliders]
    outputs = [shown, history, past, inputs.seed]
    shared = PRIVATE | {"concurrency_id": "model", "concurrency_limit": 1}
    # a click counts while the other seeds are still being generated
    gr.on([button.click, prompt.submit], compare, values, outputs, trigger_mode="always_last", **shared)
    dice.click(pick_seed, None, inputs.seed, **PRIVATE).then(compare, values, outputs, **shared)
    strengths_button.click(make_sheet, [gr.State(None), *values], sheet, **shared)
    grid_button.click(make_sheet, [prompts, *values], sheet, **shared)
    chosen = [model, edits, cards.names, *cards.sliders]
    edits.change(compare_handlers.make_choose(studio), chosen, cards.all, trigger_mode="always_last", **READING)
    # there may be news of an audit
    compare_tab.select(lambda source, names: refresh_cards(studio, source, names), [model, cards.names], cards.all, **READING)
    stop_button.click(compare_handlers.make_stop(studio), None, None, **READING)
    examples.click(text_of, None, prompt, **READING)
    suite.change(pick_suite_prompt, suite, prompt, **READING)
    history.click(compare_handlers.make_restore(studio), None, [model, *inputs.restored, shown], **PRIVATE)
    return CompareTab(edits, examples, [*inputs.restored, shown, history, past])


def build_settings(prompt: gr.Textbox, edits: gr.Dropdown, cards: EditCards) -> tuple[Inputs, gr.Button, gr.Dropdown]:
    """Build the settings below the edits. Return all inputs, the button for another seed, and the list of suites."""
    with gr.Row(elem_classes="seeds"):
        # seeds are text, because JavaScript numbers have 53 bits
        seed = gr.Textbox(str(FIRST_SEED), label="Seed", max_lines=1, max_length=20, min_width=90, elem_id="seed", interactive=True)
        dice = gr.Button("New seed", elem_id="dice", min_width=90)
    keep_seed = gr.Checkbox(True, label="Keep this seed for the next comparison", elem_id="keep-seed", interactive=True)
    count = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Number of images, with consecutive seeds", interactive=True)
    with gr.Accordion("More settings", open=False):
        steps = gr.Slider(1, MAX_STEPS, 25, step=1, label="Sampling steps", interactive=True)
        guidance = gr.Slider(0, 15, 4.0, step=0.5, label="Guidance: how closely images follow the prompt", interactive=True)
        reveal = gr.Checkbox(False, label="Show sensitive images unblurred", interactive=True)
        suite = gr.Dropdown(suite_names(complete=True), value=None, label="Take a prompt from a suite", interactive=True)
    return Inputs(prompt, edits, cards, seed, keep_seed, count, steps, guidance, reveal), dice, suite


def build_sheets() -> tuple[gr.Textbox, gr.Button, gr.Button, gr.HTML]:
    """Build the part that makes several images of one seed: the prompts of a grid, two buttons, and where the images appear."""
    with gr.Accordion("Several strengths, or several prompts and edits", open=False, elem_id="sheets"):
        with gr.Row():
            prompts = gr.Textbox(
                label="Prompts for the grid, one on each line", lines=3, max_length=4000, elem_id="grid-prompts", scale=4, min_width=240
            )
            with gr.Column(scale=1, min_width=160):
                strengths_button = gr.Button("Strengths of this prompt", elem_id="strengths")
                grid_button = gr.Button("Grid of prompts and edits", elem_id="make-grid")
        sheet = gr.HTML(elem_id="sheet")
    return prompts, strengths_button, grid_button, sheet


def render_examples(is_pocket: bool) -> str:
    """Render prompts that a visitor can click."""
    return render_html("chips", texts=EXAMPLES if is_pocket else OTHER_EXAMPLES, label="examples")


def text_of(event: gr.EventData) -> str:
    """Return the text of the chip that was clicked."""
    return str(event.text)


def pick_seed() -> str:
    return str(random.randint(0, compare_handlers.LARGEST_RANDOM_SEED))


def pick_suite_prompt(name: str | None) -> Any:
    """Return a random prompt of a suite; gradio's mark for no change if no suite is chosen."""
    if not name:
        return gr.skip()
    return random.choice(suite_cases(load_suite(name), [], "smoke")).prompt
