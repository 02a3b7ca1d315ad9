"""What happens when someone compares: images as they are made, a strip of what came before, links, and another model."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import gradio as gr

from app.jobs import queue
from app.jobs.execution import configure_job
from app.web import result_view
from app.web.comparison import MAX_EDITS, CompareRequest, Comparison, EditChoice, Sheet, parse_link
from app.web.edit_cards import fill_cards, pair_strengths, refresh_cards
from app.web.messages import for_page, page_error
from app.web.results import Result
from app.web.sampler import Stopped
from app.web.studio import Studio
from erasure.config.seeds import parse_seed
from erasure.errors import UserError

Content = TypeVar("Content", Comparison, Sheet)
LARGEST_RANDOM_SEED = 999_999  # short enough to read out
MAX_HISTORY = 12
INPUTS = 6 + 3 * MAX_EDITS + 1  # of `tab_compare.Inputs.restored`
PREPARATION_SECONDS = 120.0  # how long a page that has been opened waits for the first erasure


def make_compare(studio: Studio) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """Return the handler of the Compare button: the result, the session's strip, its results, and the seed."""

    def compare(visitor: gr.Request, past: list[str], source: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        stop = studio.stops.of(visitor.session_hash)
        stop.clear()
        try:
            request, reveal = read_request(source, *values)
            yield result_view.render_waiting(f"Generating with {request.model}."), gr.skip(), gr.skip(), str(request.seed)
            result = None
            for comparison in studio.sampler.compare(request, stop):
                result = studio.results.add(request, uncover(comparison, reveal))
                yield result_view.render_result(result, studio.models.get(source)), gr.skip(), gr.skip(), gr.skip()
            assert result is not None
            past = remember(past, result)
            yield gr.skip(), result_view.render_history(studio.results.known(past)), past, gr.skip()
        except Stopped:
            yield result_view.render_empty("Stopped. Press Compare to generate these images."), gr.skip(), gr.skip(), gr.skip()
        except UserError as error:
            yield result_view.render_empty("Nothing was generated."), gr.skip(), gr.skip(), gr.skip()
            raise page_error(error) from None

    return compare


def make_sheet(studio: Studio) -> Callable[..., Iterator[str]]:
    """Return the handler of the buttons for several strengths (without prompts) and for a grid of prompts and edits."""

    def sheet(visitor: gr.Request, prompts: str | None, past: list[str], source: str, *values: Any) -> Iterator[str]:
        stop = studio.stops.of(visitor.session_hash)
        stop.clear()
        try:
            request, reveal = read_request(source, *values)
            lines = (prompts if prompts and prompts.strip() else request.prompt).splitlines()
            sheets = studio.sampler.strengths(request, stop) if prompts is None else studio.sampler.grid(lines, request, stop)
            yield result_view.render_waiting("Generating.")
            for content in sheets:
                yield result_view.render_sheet(studio.results.add(request, uncover(content, reveal)))
        except Stopped:
            yield result_view.render_empty("Stopped.")
        except UserError as error:
            yield ""
            raise page_error(error) from None

    return sheet


def make_stop(studio: Studio) -> Callable[[gr.Request], None]:
    """Return the handler of the Stop button."""

    def stop(visitor: gr.Request) -> None:
        studio.stops.of(visitor.session_hash).set()

    return stop


def read_request(
    source: str,
    prompt: str,
    edits: list[str],
    seed: str,
    keep_seed: bool,
    count: int,
    steps: int,
    guidance: float,
    reveal: bool,
    names: list[str],
    *strengths: float,
) -> tuple[CompareRequest, bool]:
    """Return what the page asks for, and whether sensitive images are shown.

    Args:
        names: of the edits that have a slider, in the order of the strengths.

    Raises:
        UserError: The seed is not one.
    """
    chosen = tuple(pair_strengths(edits or [], names, strengths))
    number = parse_seed(seed) if keep_seed else random.randint(0, LARGEST_RANDOM_SEED)
    request = CompareRequest(
        model=source, prompt=prompt or "", edits=chosen, seed=number, count=int(count), steps=int(steps), guidance=float(guidance)
    )
    return request, reveal


def uncover(content: Content, reveal: bool) -> Content:
    """Return a result whose sensitive images are shown if the visitor wants that."""
    return replace(content, sensitive=content.sensitive and not reveal)


def remember(past: list[str], result: Result) -> list[str]:
    """Return the names of this session's results with a new one first."""
    return [result.id, *past][:MAX_HISTORY]


def make_choose(studio: Studio) -> Callable[..., list[Any]]:
    """Return the handler for other chosen edits: it shows their cards, and keeps the strengths that were set."""

    def choose(source: str, names: list[str], cards: Sequence[str], *strengths: float) -> list[Any]:
        if tuple(names or ()) == tuple(cards):  # a link or an earlier result has set their strengths, perhaps after this event was sent
            return refresh_cards(studio, source, cards)
        return fill_cards(studio, source, pair_strengths(names or [], cards, strengths))

    return choose


def make_restore(studio: Studio) -> Callable[[gr.EventData], list[Any]]:
    """Return the handler that shows an earlier result of this session with its settings."""

    def restore(event: gr.EventData) -> list[Any]:
        try:
            result = studio.results.get(str(event.id))
        except UserError as error:
            raise page_error(error) from None
        return [
            result.request.model,
            *fill(studio, result.request),
            result_view.render_result(result, studio.models.get(result.request.model)),
        ]

    return restore


def fill(studio: Studio, request: CompareRequest) -> list[Any]:
    """Return the values of `Inputs.restored` for a request."""
    edits = gr.Dropdown(choices=list(studio.edits(request.model)), value=[choice.name for choice in request.edits])
    cards = fill_cards(studio, request.model, request.edits)
    return [request.prompt, edits, *cards, str(request.seed), request.count, request.steps, request.guidance]


def make_open(studio: Studio) -> Callable[..., Iterator[list[Any]]]:
    """Return the handler for a page that was opened: it makes what its link asks for, or shows the first comparison.

    It yields the model, and the values of `CompareTab.filled`.
    """

    def open_page(request: gr.Request) -> Iterator[list[Any]]:
        studio.ready.wait(PREPARATION_SECONDS)
        query = request.query_params
        source = query.get("model", studio.first_source)
        try:
            first = studio.first_request(source)
            asked = parse_link(dict(query), query.getlist("edits"), first)
            for values in show_first(studio, asked):
                yield [source, *values]
        except UserError as error:
            first = studio.first_request(studio.first_source)
            gr.Warning(f"This link could not be followed: {for_page(str(error))}")
            for values in show_first(studio, first):
                yield [studio.first_source, *values]

    return open_page


def make_switch(studio: Studio) -> Callable[[str], Iterator[list[Any]]]:
    """Return the handler for another model: it yields the values of `CompareTab.filled`."""

    def switch(source: str) -> Iterator[list[Any]]:
        skip = [gr.skip() for _ in range(INPUTS)]
        try:
            if not studio.models.is_loaded(source):
                yield [*skip, result_view.render_waiting(f"Loading {source}."), gr.skip(), gr.skip()]
            first = studio.first_request(source)
        except UserError as error:
            yield [*skip, result_view.render_empty(f"{source} is not loaded."), gr.skip(), gr.skip()]
            raise page_error(error) from None
        yield from show_first(studio, first)

    return switch


def make_show_edit(studio: Studio) -> Callable[[str | None], Iterator[list[Any]]]:
    """Return the handler that compares the edit of a job: it yields the tabs, the model, and the values of `CompareTab.filled`."""

    def show_edit(job: str | None) -> Iterator[list[Any]]:
        try:
            folder = studio.jobs.folder(job)
            spec = queue.spec_of(folder)
            edit = next((edit for edit in studio.edits(spec.model).values() if edit.folder == folder / "edit"), None) if spec else None
            if spec is None or edit is None:
                raise UserError("this job has no finished edit.")
        except UserError as error:
            raise page_error(error) from None
        first = studio.first_request(spec.model)
        prompt = configure_job(studio.models.get(spec.model).model, spec)[1][0].prompt_pairs()[-1][0]
        request = replace(first, prompt=prompt, edits=(EditChoice(edit.name),))
        tabs: Any = gr.Tabs(selected="compare")
        for values in show_first(studio, request):
            yield [tabs, spec.model, *values]
            tabs = gr.skip()  # the visitor may have gone elsewhere meanwhile

    return show_edit


def show_first(studio: Studio, request: CompareRequest) -> Iterator[list[Any]]:
    """Yield the inputs of a request at once, then its result: made if the model is fast, else the images of an edit's card."""
    model, filled, skip = studio.models.get(request.model), fill(studio, request), [gr.skip() for _ in range(INPUTS)]
    yield [*filled, gr.skip(), gr.skip(), gr.skip()]
    if not studio.is_fast(model):
        edits = studio.edits(request.model)
        card = next((edit for edit in reversed(edits.values()) if edit.card_image), None)
        yield [*skip, result_view.render_card_images(card) if card else result_view.render_empty(NO_EDIT_YET), gr.skip(), gr.skip()]
        return
    result = None
    for comparison in studio.sampler.compare(request):
        result = studio.results.add(request, comparison)
        yield [*skip, result_view.render_result(result, model), gr.skip(), gr.skip()]
    if result is not None:
        yield [*skip, gr.skip(), result_view.render_history([result]), [result.id]]


NO_EDIT_YET = "No edit of this model yet. The tab “Erase” makes one; or press Compare to see the model alone."
