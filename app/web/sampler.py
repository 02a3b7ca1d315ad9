"""Makes the images of comparisons and sheets on a studio's models, keeps the last ones, and stops when asked."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from app.web.comparison import MAX_COLUMNS, MAX_ROWS, STRENGTHS, CompareRequest, Comparison, EditChoice, Sheet
from app.web.image_models import sample_images
from app.web.models import StudioModel, StudioModels
from app.web.safety import SafetyChecker
from erasure.edits import Edit, apply_edits, revert_all
from erasure.errors import UserError
from eval.judges.pocket_object import PocketObject
from eval.judges.pocket_style import PocketStyle
from eval.records.scores import Scores

CACHED_BYTES = 128 * 2**20
MAX_VISITORS = 1000  # whose Stop buttons are known
ImagesKey = tuple[str, str, tuple[int, ...], int, float, tuple[tuple[str, float], ...]]
LoadEdits = Callable[[str, Sequence[str]], list[Edit]]  # by the source of their model and their names on the page


class Stopped(Exception):
    """The visitor pressed Stop."""


@dataclass
class StopButtons:
    """One signal a visitor; those of visitors who were not seen for longest are forgotten."""

    events: "OrderedDict[str, threading.Event]" = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, visitor: str | None) -> threading.Event:
        with self.lock:
            event = self.events.setdefault(visitor or "", threading.Event())
            self.events.move_to_end(visitor or "")
            while len(self.events) > MAX_VISITORS:
                self.events.popitem(last=False)
        return event


@dataclass
class Sampler:
    """Generates images, one visitor at a time, because edits are applied to the one model in memory.

    Attributes:
        load_edits: finds edits by name.
        checker: hides images on public pages.
    """

    models: StudioModels
    load_edits: LoadEdits
    checker: SafetyChecker | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    cached: "OrderedDict[ImagesKey, Tensor]" = field(default_factory=OrderedDict)
    pass_seconds: dict[str, float] = field(default_factory=dict)  # of a network pass for one image, by source; the fastest so far

    @contextmanager
    def exclusive(self, model: StudioModel) -> Iterator[None]:
        """Lock a model for one request, as the base: edits that an earlier request left applied are reverted first.

        Raises:
            UserError: They cannot be reverted. Then nothing is generated, because the model would not be the base.
        """
        with self.lock:
            revert_all(model.model.pipe)
            yield

    def compare(self, request: CompareRequest, stop: threading.Event | None = None) -> Iterator[Comparison]:
        """Generate the images of a request with the base and with the edits applied: yield the first pair, then all.

        Raises:
            UserError: A value is out of its range, an edit is unknown, or the edits cannot be combined.
            Stopped: `stop` was set.
        """
        request.check()
        model, edits = self.models.get(request.model), self._load(request.model, request.edits)
        first = self._compare(model, replace(request, count=1), edits, stop)
        yield first
        if request.count > 1:
            yield first + self._compare(model, replace(request, seed=request.seed + 1, count=request.count - 1), edits, stop)

    def strengths(self, request: CompareRequest, stop: threading.Event | None = None) -> Iterator[Sheet]:
        """Generate the first seed at several strengths: yield a sheet of one row when it is done.

        Raises as `compare`, and UserError without an edit.
        """
        if not request.edits:
            raise UserError("choose an edit first; without one every strength gives the same image.")
        factors = [tuple((choice.name, factor * choice.strength) for choice in request.edits) for factor in STRENGTHS]
        columns = tuple("base" if factor == 0 else f"strength {factor:g}" for factor in STRENGTHS)
        yield from self._sheet(
            "strengths", [request.prompt], columns, [tuple(EditChoice(*pair) for pair in row) for row in factors], request, stop
        )

    def grid(self, prompts: Sequence[str], request: CompareRequest, stop: threading.Event | None = None) -> Iterator[Sheet]:
        """Generate the first seed of several prompts with the base and with every edit alone: yield the sheet after each row.

        Raises as `compare`, and UserError without prompts, or with too many prompts or edits.
        """
        prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
        if not 1 <= len(prompts) <= MAX_ROWS or len(request.edits) >= MAX_COLUMNS:
            limits = f"1 to {MAX_ROWS} prompts and at most {MAX_COLUMNS - 1} edits"
            raise UserError(f"a grid takes {limits}; here are {len(prompts)} and {len(request.edits)}.")
        columns = ("base", *(choice.name for choice in request.edits))
        yield from self._sheet("grid", prompts, columns, [(), *((choice,) for choice in request.edits)], request, stop)

    def _sheet(
        self,
        title: str,
        prompts: Sequence[str],
        columns: tuple[str, ...],
        stacks: Sequence[tuple[EditChoice, ...]],
        request: CompareRequest,
        stop: threading.Event | None,
    ) -> Iterator[Sheet]:
        model, rows, hidden = self.models.get(request.model), list[tuple[Tensor, ...]](), set[tuple[int, int]]()
        loaded = [self._load(request.model, stack) for stack in stacks]
        sensitive = any(is_sensitive(edits) for edits in loaded)
        for number, prompt in enumerate(prompts):
            one = replace(request, prompt=prompt, count=1)
            one.check()
            with self.exclusive(model):
                rows.append(tuple(self._images(model, one, edits, stop)[0] for edits in loaded))
            flags = self.checker(torch.stack(rows[-1])) if self.checker else []
            hidden |= {(number, column) for column, flag in enumerate(flags) if flag}
            yield Sheet(title, columns, tuple(prompts), tuple(rows), request.seed, sensitive, frozenset(hidden))

    def _compare(
        self, model: StudioModel, request: CompareRequest, edits: list[tuple[Edit, float]], stop: threading.Event | None
    ) -> Comparison:
        with self.exclusive(model):
            base = self._images(model, request, [], stop)
            erased = self._images(model, request, edits, stop) if edits else base
        flagged = self.checker(torch.cat((base, erased))) if self.checker else []
        hidden = tuple(sorted({i % request.count for i, flag in enumerate(flagged) if flag}))
        return Comparison(request.seeds, base, erased, judge(model, base, erased, request.prompt), is_sensitive(edits), hidden)

    def _load(self, source: str, choices: Sequence[EditChoice]) -> list[tuple[Edit, float]]:
        edits = self.load_edits(source, [choice.name for choice in choices])
        return [(edit, choice.strength) for edit, choice in zip(edits, choices, strict=True)]

    def _images(
        self, model: StudioModel, request: CompareRequest, edits: Sequence[tuple[Edit, float]], stop: threading.Event | None
    ) -> Tensor:
        """Return images [B, 3, H, W], uint8. The last ones are kept, so that settings which were tried come back at once."""
        stack = tuple((edit.digest(), strength) for edit, strength in edits)
        key = (model.source, request.prompt, tuple(request.seeds), request.steps, request.guidance, stack)
        if key not in self.cached:

            def check_stop(step: int) -> None:
                if stop is not None and stop.is_set():
                    raise Stopped

            with ExitStack() as applied:
                for edit, strength in edits:
                    applied.enter_context(apply_edits(model.model, edit, strength=strength))
                start = time.monotonic()
                self.cached[key] = sample_images(
                    model.model, request.prompt, request.seeds, request.steps, request.guidance, on_step=check_stop
                )
            passes = request.count * request.steps * model.model.forwards_per_step
            seconds = (time.monotonic() - start) / passes
            self.pass_seconds[model.source] = min(seconds, self.pass_seconds.get(model.source, seconds))
        self.cached.move_to_end(key)
        while sum(images.nbytes for images in self.cached.values()) > CACHED_BYTES and len(self.cached) > 1:
            self.cached.popitem(last=False)
        return self.cached[key]


def is_sensitive(edits: Sequence[tuple[Edit, float]]) -> bool:
    return any(concept["kind"] == "nsfw" for edit, _ in edits for concept in edit.info.concepts)


def judge(model: StudioModel, base: Tensor, erased: Tensor, prompt: str) -> list[tuple[Scores, Scores]]:
    """Return what the classifiers of the shipped models read in each image before and after; empty for other models."""
    if not model.is_pocket:
        return []
    images, prompts = torch.cat((base, erased)).float() / 255, [prompt] * (len(base) + len(erased))
    labels = zip(PocketStyle().score(images, prompts), PocketObject().score(images, prompts), strict=True)
    scores = [Scores(style=style, object=object_score) for style, object_score in labels]
    return list(zip(scores[: len(base)], scores[len(base) :], strict=True))
