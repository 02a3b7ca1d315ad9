"""Erase tab: name a concept, choose a method, see what it will take, watch it work, and see what it did."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from app.html_templates import render_html
from app.jobs import queue
from app.jobs.plan import JobSpec
from app.method_words import summary_of_method, title_of_method
from app.web.comparison import MAX_PROMPT_LENGTH
from app.web.concept_words import describe_concept, kind_of
from app.web.events import PRIVATE, READING
from app.web.job_estimate import estimate_job
from app.web.job_panel import build_job_panel, job_choices
from app.web.job_view import format_seconds
from app.web.messages import for_page
from app.web.method_form import read_form, render_form
from app.web.models import StudioModel
from app.web.studio import Studio
from app.web.studio_jobs import title_of
from app.web.tab_compare import CHIP_SCRIPT, text_of
from erasure.concept import Concept, ConceptKind
from erasure.config.registry import list_modules, load_class
from erasure.config.seeds import parse_seed
from erasure.errors import UserError
from erasure.families.released_models import RELEASED
from erasure.loading.model_source import SHIPPED_MODELS
from erasure.memory.formula import GIB
from erasure.memory.shipped import load_forecasts
from erasure.methods.base import Method
from eval.suites.suite import suite_names

KINDS: list[tuple[str, ConceptKind]] = [("a style", "style"), ("a thing", "object"), ("a person", "person"), ("nudity or violence", "nsfw")]
FIRST_METHOD = "esd"
NO_AUDIT = ("no, only erase", "")


@dataclass(frozen=True)
class EraseTab:
    """What the page needs of the tab: the list of jobs, and the button that compares a job's edit."""

    job: gr.Dropdown
    compare: gr.Button


@dataclass(frozen=True)
class Inputs:
    """What every erasure is asked for with, whatever its method."""

    concept: gr.Textbox
    kind: gr.Radio
    anchor: gr.Textbox
    seed: gr.Textbox
    suite: gr.Dropdown

    @property
    def all(self) -> list[Any]:
        return [self.concept, self.kind, self.anchor, self.seed, self.suite]


@dataclass(frozen=True)
class Answers:
    """What the tab says about what is chosen: the options of the method, advice on it, and what the model knows of the concept."""

    form: gr.HTML
    advice: gr.HTML
    known: gr.HTML


def tab(studio: Studio, page: gr.Blocks, model: gr.Dropdown, erase_tab: gr.Tab, timer: gr.Timer) -> EraseTab:
    """Build the tab for the model that is chosen on the page."""
    job = gr.Dropdown(
        job_choices(studio), label="Job", elem_id="job", allow_custom_value=True, interactive=True, render=False
    )  # a custom value is a job that appeared later; it is checked where it is used
    with gr.Row(elem_classes="split"):
        with gr.Column(elem_classes="ask", min_width=280):
            concept, kind, known = build_concept_inputs(studio)
            method = gr.Dropdown(method_choices(), value=FIRST_METHOD, label="Method", elem_id="method", interactive=True)
            advice = gr.HTML(elem_id="advice")
            note = gr.HTML(elem_id="erase-note")
            start = gr.Button("Erase", variant="primary", elem_id="erase")
        with gr.Column(elem_classes="found", min_width=280):
            job.render()  # type: ignore[no-untyped-call]  # gradio has no types for it
            compare_button = build_job_panel(studio, job, erase_tab, timer)
        with gr.Column(elem_classes="adjust", min_width=280):
            suite, anchor, seed = build_further_inputs(studio)
            with gr.Accordion("Options", open=False, elem_id="options"):
                form = gr.HTML(elem_id="method-form")
                typed = gr.Textbox(visible=False)
    inputs = Inputs(concept, kind, anchor, seed, suite)
    hinted = gr.State("")  # the concept whose hints were shown; a second press confirms it
    asked = [model, method, *inputs.all, hinted, typed]
    read_options = f"(...values) => [...values.slice(0, {len(asked) - 1}), eraseStudio.readOptions()]"
    start.click(make_erase_handler(studio), asked, [note, job, hinted], js=read_options, **PRIVATE)
    follow_choices(studio, page, erase_tab, [model, method, kind, concept, suite], Answers(form, advice, known))
    known.click(text_of, None, concept, **READING)
    return EraseTab(job, compare_button)


def follow_choices(studio: Studio, page: gr.Blocks, erase_tab: gr.Tab, asked: list[Any], answers: Answers) -> None:
    """Show the options, the advice and what the model knows, for what is chosen: model, method, kind, concept and suite."""
    model, method, kind, concept, suite = asked
    filled = gr.State(())  # model, method and kind whose recipe the form shows: what a visitor changed stays until one of them changes
    fill, advise = make_form_handler(studio), make_advice_handler(studio)
    page.load(fill, [filled, model, method, kind], [filled, answers.form], **READING)
    gr.on(
        [erase_tab.select, model.change],
        lambda filled, *asked: (*fill(filled, *asked[:3]), advise(*asked), describe_concept(studio, asked[0], asked[3])),
        [filled, *asked],
        [filled, answers.form, answers.advice, answers.known],
        trigger_mode="always_last",
        **READING,
    )
    gr.on(
        [method.change, kind.change],
        lambda filled, *asked: (*fill(filled, *asked[:3]), advise(*asked)),
        [filled, *asked],
        [filled, answers.form, answers.advice],
        trigger_mode="always_last",
        **READING,
    )
    gr.on([suite.change, concept.blur], advise, asked, answers.advice, trigger_mode="always_last", **READING)
    concept.change(
        lambda source, text: (describe_concept(studio, source, text), kind_of(text) or gr.skip()),
        [model, concept],
        [answers.known, kind],
        trigger_mode="always_last",
        **READING,
    )


def build_concept_inputs(studio: Studio) -> tuple[gr.Textbox, gr.Radio, gr.HTML]:
    """Build the concept, what the model knows about it, and its kind."""
    concept = gr.Textbox(
        "neon" if studio.first_source in SHIPPED_MODELS else "",
        label="What to erase",
        info="Several concepts: separate them with a semicolon.",
        max_length=MAX_PROMPT_LENGTH,
        elem_id="concept",
        interactive=True,
    )
    known = gr.HTML(elem_id="known", js_on_load=CHIP_SCRIPT)
    kind = gr.Radio(KINDS, value="style", label="It is", elem_id="kind", interactive=True)
    return concept, kind, known


def build_further_inputs(studio: Studio) -> tuple[gr.Dropdown, gr.Textbox, gr.Textbox]:
    """Build the suite that measures the erasure, what the concept should become, and the seed."""
    suite = gr.Dropdown(
        [NO_AUDIT, *suite_names(complete=True)],
        value="pocket" if studio.first_source in SHIPPED_MODELS else "",
        label="Measure it afterwards, with the suite",
        elem_id="suite",
        interactive=True,
    )
    anchor = gr.Textbox(
        "", label="What it should become", placeholder="nothing in particular", max_length=MAX_PROMPT_LENGTH, interactive=True
    )
    seed = gr.Textbox("0", label="Seed", max_lines=1, max_length=20, interactive=True)
    return suite, anchor, seed


def method_choices() -> list[tuple[str, str]]:
    """Return methods by what they are called and what they do."""
    return [(f"{title_of_method(name)}: {summary_of_method(name)}", name) for name in list_modules("erasure.methods")]


def make_advice_handler(studio: Studio) -> Any:
    """Return the handler that says when a method is a good choice and what it takes on this model."""

    def advise(source: str, name: str, kind: ConceptKind, concept: str, suite: str) -> str:
        cls = load_class("erasure.methods", name, Method)
        lines = [f"Choose it {cls.when}." if cls.when.startswith(("when", "after")) else f"{cls.when[:1].upper()}{cls.when[1:]}."]
        lines.append(
            f"It changes {cls.changes}." if not cls.changes.startswith(("sets", "no ")) else f"{cls.changes[:1].upper()}{cls.changes[1:]}."
        )
        if kind in cls.unfit:
            lines.append(f"A poor choice for this kind of concept: {cls.unfit[kind]}.")
        try:
            lines.append(forecast(studio, studio.models.get(source), name, kind, concept, suite) + forecast_memory(source, name))
        except UserError as error:
            lines.append(str(error))
        return render_html("advice", lines=[for_page(line) for line in lines])

    return advise


def forecast(studio: Studio, model: StudioModel, method: str, kind: ConceptKind, concept: str, suite: str) -> str:
    """Say how long an erasure and its audit take on this machine, as far as that is known."""
    spec = JobSpec(concepts=(Concept(name=concept.partition(";")[0].strip() or "concept", kind=kind),), method=method, model=model.source)
    pass_seconds = studio.sampler.pass_seconds.get(model.source)
    if pass_seconds is None:
        return "How long it takes is known once this model has made images here."
    erasing = estimate_job(model, spec, pass_seconds).total
    text = f"On this machine about {format_seconds(erasing)}"
    try:
        audited = estimate_job(model, JobSpec(**(vars(spec) | {"suite": suite})), pass_seconds).total if suite else 0.0
    except UserError:
        return f"{text}. This suite has no test for the concept."
    return f"{text}, and {format_seconds(audited - erasing)} to measure it." if suite else f"{text}."


def forecast_memory(source: str, method: str) -> str:
    """Say how much GPU memory a method takes on a released or shipped model; nothing for others."""
    name = next((released.name for released in RELEASED if released.source == source), "")
    peak = load_forecasts()[name].peaks.get(method) if name in load_forecasts() else None
    amount = f"about {peak / GIB:.1f} GiB" if peak and peak >= GIB / 10 else "less than 0.1 GiB"
    return f" On a GPU, the forecast is {amount} of memory." if peak else ""


def make_form_handler(studio: Studio) -> Any:
    """Return the handler that shows the options of a method with its recipe."""

    def fill(filled: tuple[str, ...], *chosen: Any) -> tuple[Any, Any]:
        source, name, kind = chosen
        if chosen == tuple(filled):
            return gr.skip(), gr.skip()
        try:
            return chosen, render_form(name, studio.models.get(source).model, kind, studio.is_local)
        except UserError:  # the advice says why
            return chosen, render_html("advice", lines=["This method has no options for this model."])

    return fill


def make_erase_handler(studio: Studio) -> Any:
    """Return the handler of the Erase button."""

    def run(
        source: str, method: str, concept: str, kind: ConceptKind, anchor: str, seed: str, suite: str, hinted: str, options: str
    ) -> tuple[str, Any, str]:
        try:
            if concept != hinted and (hints := studio.jobs.find_hints(source, concept)):
                return render_html("advice", lines=[*map(for_page, hints), "Press Erase again to erase it anyway."]), gr.skip(), concept
            changed = read_form(options, method, studio.models.get(source).model, kind, studio.is_local)
            folder = studio.jobs.queue_erasure(source, concept, kind, anchor, method, changed, parse_seed(seed), suite)
        except UserError as error:  # beside the button, where it stays until the next press
            return render_html("fault", text=for_page(str(error))), gr.skip(), gr.skip()
        line = f"{title_of(folder, queue.spec_of(folder))} is in the queue. It goes on when this page is closed."
        return render_html("advice", lines=[line]), gr.Dropdown(choices=job_choices(studio), value=folder.name), ""

    return run
