"""The functions of the web studio without its page: compare, list edits, queue jobs. The page and the API call them."""

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.jobs import queue
from app.jobs.plan import JobSpec
from app.web.image_models import sample_images
from app.web.safety import SafetyChecker
from erasure.concept import Concept, ConceptKind
from erasure.concept_hints import find_hints
from erasure.config.registry import load_class
from erasure.config.seeds import check_seed
from erasure.edits import Edit, apply_edits, check_distinct, revert_all
from erasure.edits.edit_json import read_edit_info
from erasure.erasing import erase
from erasure.errors import UserError, unknown_value_error
from erasure.families.base import DiffusionModel
from erasure.loading.model_source import SHIPPED_MODELS
from erasure.methods.base import Method
from erasure.methods.uce import UCE
from erasure.pocket.captions import OBJECT_WORDS, STYLE_WORDS, vocabulary
from erasure.recipes import configure_method
from eval.auditing.plan import AuditPlan
from eval.judges.pocket_object import PocketObject
from eval.judges.pocket_style import PocketStyle
from eval.records.scores import Scores
from eval.suites.suite import load_suite

MAX_PROMPT_LENGTH, MAX_IMAGES, MAX_STEPS, MAX_QUEUED = 500, 8, 100, 32
FIRST_PROMPT = "a watercolor picture of a house"
READY_CONCEPT = Concept(name="watercolor", kind="style")  # erased when the studio starts for the first time


@dataclass(frozen=True)
class Comparison:
    """Images of one prompt with the base and with edits applied, from the same noise."""

    seeds: list[int]
    base: Tensor  # [B, 3, H, W] uint8
    erased: Tensor  # [B, 3, H, W] uint8
    scores: list[tuple[Scores, Scores]]  # of each image before and after; empty without judges
    sensitive: bool = False  # an edit of the nsfw kind is applied: blurred until the user reveals it
    hidden: tuple[int, ...] = ()  # indices of pairs that the safety checker hides

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(
            self.seeds + other.seeds,
            torch.cat((self.base, other.base)),
            torch.cat((self.erased, other.erased)),
            self.scores + other.scores,
            self.sensitive or other.sensitive,
            self.hidden + tuple(len(self.seeds) + i for i in other.hidden),
        )

    def difference(self, i: int) -> Tensor:
        """Return the mean absolute difference over colors of pair i: [H, W] in [0, 1]."""
        return (self.base[i].float() - self.erased[i].float()).abs().mean(0) / 255


@dataclass
class Studio:
    """A loaded model, a folder of runs, and a lock, because edits are applied to the one model in memory."""

    model: DiffusionModel
    root: Path
    is_local: bool = True  # whether visitors may name paths of this machine
    checker: SafetyChecker | None = None  # hides images on public pages
    lock: threading.Lock = field(default_factory=threading.Lock)
    base_images: "OrderedDict[tuple[Any, ...], Tensor]" = field(default_factory=OrderedDict)
    ready: threading.Event = field(default_factory=threading.Event)  # set when `prepare` is done

    def __post_init__(self) -> None:
        self.base_fingerprint = self.model.fingerprint()  # computed once: later another thread may have an edit applied

    @property
    def source(self) -> str:
        return self.model.source

    @property
    def is_pocket(self) -> bool:
        return self.source in SHIPPED_MODELS

    def prepare(self) -> None:
        """Prepare an erasure for the first visit: a closed form that takes a few seconds, once. The page may be open already."""
        if self.is_pocket:
            method, concepts, _ = configure_method(UCE, [READY_CONCEPT], self.model.family, {})
            with self.exclusive():
                erase(self.model, concepts, method, out=self.root / "ready" / "watercolor-uce")
            next(self.compare(FIRST_PROMPT, [], 0, 1, 2, 4.0, 1.0))  # loads the judges and warms the kernels up
        self.ready.set()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock the model for one request, as the base: edits that an earlier request left applied are reverted first.

        Raises:
            UserError: They cannot be reverted. Then nothing is generated, because the model would not be the base.
        """
        with self.lock:
            revert_all(self.model.pipe)
            yield

    def edits(self) -> dict[str, Path]:
        """Return edits below the runs folder that were made on the loaded model, by display name, newest first; without exports."""
        files = exclude_exports(sorted(self.root.glob("**/edit.json"), key=lambda path: -os.lstat(path).st_mtime_ns))
        paths: dict[str, Path] = {}
        for file in files:
            try:
                edit = Edit({}, read_edit_info(file)[0])
            except UserError:
                continue  # one broken folder must not stop the page
            if edit.info.base["fingerprint"] == self.base_fingerprint:
                name = edit.name + (f", seed {edit.info.seed}" if edit.info.seed else "")
                paths[name if name not in paths else f"{name} [{file.parent.relative_to(self.root)}]"] = file.parent
        return paths

    def load_edits(self, names: list[str]) -> list[Edit]:
        """Load edits by their display names.

        Raises:
            UserError: A name is not on the list, or an edit is duplicated.
        """
        available = self.edits()
        for name in names:
            if name not in available:
                raise unknown_value_error("edit", name, available)
        return list(check_distinct([Edit.load(available[name]) for name in names]))

    def compare(
        self, prompt: str, names: list[str], seed: int, count: int, steps: int, guidance: float, strength: float
    ) -> Iterator[Comparison]:
        """Generate images with the base and with the edits applied, for seeds from `seed` up: yield the first, then all `count`.

        Raises:
            UserError: A value is out of its range, an edit is unknown, or the edits cannot be combined.
        """
        ranges = (
            ("images", count, 1, MAX_IMAGES),
            ("steps", steps, 1, MAX_STEPS),
            ("guidance", guidance, 0, 30),
            ("strength", strength, -2, 4),
        )
        for name, value, low, high in ranges:
            if not low <= value <= high:
                raise UserError(f"{name} must lie between {low} and {high}, got {value:g}.")
        if len(prompt) > MAX_PROMPT_LENGTH:
            raise UserError(f"a prompt may have {MAX_PROMPT_LENGTH} characters, this one has {len(prompt):,}.")
        edits, seeds = self.load_edits(names), list(range(check_seed(seed), seed + count))
        first = self._compare(prompt, edits, seeds[:1], steps, guidance, strength)
        yield first
        if rest := seeds[1:]:
            yield first + self._compare(prompt, edits, rest, steps, guidance, strength)

    def _compare(self, prompt: str, edits: list[Edit], seeds: list[int], steps: int, guidance: float, strength: float) -> Comparison:
        with self.exclusive():
            base = self._base_images(prompt, seeds, steps, guidance)
            with apply_edits(self.model, edits, strength=strength):
                erased = self._generate(prompt, seeds, steps, guidance) if edits else base
        sensitive = any(concept["kind"] == "nsfw" for edit in edits for concept in edit.info.concepts)
        flagged = self.checker(torch.cat((base, erased))) if self.checker else []
        hidden = tuple(sorted({i % len(seeds) for i, flag in enumerate(flagged) if flag}))
        return Comparison(seeds, base, erased, self._judge_scores(base, erased, prompt), sensitive, hidden)

    def _base_images(self, prompt: str, seeds: list[int], steps: int, guidance: float) -> Tensor:
        """Return the base's images. They do not depend on edits, so the last few are cached."""
        key = (prompt, tuple(seeds), steps, guidance)
        if key not in self.base_images:
            self.base_images[key] = self._generate(prompt, seeds, steps, guidance)
            while len(self.base_images) > 32:
                self.base_images.popitem(last=False)
        return self.base_images[key]

    def _generate(self, prompt: str, seeds: list[int], steps: int, guidance: float) -> Tensor:
        return sample_images(self.model, prompt, seeds, steps, guidance)

    def _judge_scores(self, base: Tensor, erased: Tensor, prompt: str) -> list[tuple[Scores, Scores]]:
        if not self.is_pocket:
            return []
        images, prompts = torch.cat((base, erased)).float() / 255, [prompt] * (len(base) + len(erased))
        labels = zip(PocketStyle().score(images, prompts), PocketObject().score(images, prompts), strict=True)
        scores = [Scores(style=style, object=object_score) for style, object_score in labels]
        return list(zip(scores[: len(base)], scores[len(base) :], strict=True))

    def unknown_words(self, prompt: str) -> list[str]:
        """Return the words of a prompt that are in no training caption of pocket; empty for other models."""
        if not self.is_pocket:
            return []
        caption_words = vocabulary()
        return list(dict.fromkeys(word for word in re.findall(r"[^\W_][\w'-]*", prompt.lower()) if word not in caption_words))

    def known_concepts(self) -> dict[str, list[str]]:
        """Return the concepts that pocket was trained on, by kind; empty for other models."""
        if not self.is_pocket:
            return {}
        return {
            "styles": [words.names[0] for words in STYLE_WORDS.values()],
            "things": [words.names[0] for key, words in OBJECT_WORDS.items() if key not in ("ada", "otto")],
            "people": [words.names[0] for key, words in OBJECT_WORDS.items() if key in ("ada", "otto")],
        }

    def hints(self, concept: str) -> list[str]:
        """Return hints about concepts before anything is queued.

        Raises:
            UserError: A name is empty.
        """
        return find_hints(self.model, [Concept(name=name.strip()) for name in concept[:MAX_PROMPT_LENGTH].split(";")])

    def queue_erasure(
        self, concept: str, kind: ConceptKind, anchor: str, method: str, method_fields: dict[str, Any], seed: int, suite: str
    ) -> Path:
        """Queue an erasure and return the folder of its job.

        Raises:
            UserError: A concept, method or field does not exist, a text is too long, or the queue is full.
        """
        concepts = tuple(Concept(name=name.strip(), kind=kind, anchor=anchor.strip()) for name in concept.split(";"))
        if len(concept) > MAX_PROMPT_LENGTH or len(anchor) > MAX_PROMPT_LENGTH:
            raise UserError(f"a concept may have {MAX_PROMPT_LENGTH} characters, this one has {max(len(concept), len(anchor)):,}.")
        for requested in concepts if suite else ():
            load_suite(suite).find_concept(requested.name)  # fails now, not after the erasure
        # fails now, not in an hour
        configure_method(load_class("erasure.methods", method, Method), list(concepts), self.model.family, method_fields)
        spec = JobSpec(concepts=concepts, method=method, fields=method_fields, seed=check_seed(seed), model=self.source, suite=suite)
        return self.enqueue(spec)

    def queue_audit(self, names: list[str], suite: str, tier: str) -> Path:
        """Queue an audit of edits by name and return the folder of its job.

        Raises:
            UserError: No edit is chosen, the suite lacks the concept, or the queue is full.
        """
        if not names:
            raise UserError("choose an edit to audit.")
        edits, available = self.load_edits(names), self.edits()
        AuditPlan.for_edits(edits, load_suite(suite), tier)
        return self.enqueue(JobSpec(edits=tuple(str(available[name]) for name in names), model=self.source, suite=suite, tier=tier))

    def enqueue(self, spec: JobSpec) -> Path:
        """Queue a job and return its folder. A stopped job is queued again.

        Raises:
            UserError: The queue is full.
        """
        waiting = [folder for folder, _ in self.jobs() if queue.read_progress(folder).state == "waiting"]
        if len(waiting) >= MAX_QUEUED:
            raise UserError(f"{MAX_QUEUED} jobs are waiting already; cancel some, or come back when they are done.")
        folder = self.root / "jobs" / spec.folder_name
        queue.enqueue(folder, spec)
        if queue.read_progress(folder).state in (*queue.STOPPED_STATES, "interrupted"):
            queue.requeue(folder)
        return folder

    def jobs(self) -> list[tuple[Path, JobSpec | None]]:
        """Return every job of this studio, oldest first; the spec is None where it cannot be read."""
        return list(queue.find_jobs(self.root / "jobs")) if (self.root / "jobs").is_dir() else []

    def job_folder(self, name: str) -> Path:
        """Return the folder of a job. The name is compared with the list, never joined to a path.

        Raises:
            UserError: The job does not exist.
        """
        folders_by_name = {folder.name: folder for folder, _ in self.jobs()}
        if name not in folders_by_name:
            raise unknown_value_error("job", name, folders_by_name)
        return folders_by_name[name]


def exclude_exports(files: Sequence[Path]) -> list[Path]:
    """Return the edit.json files of runs, and those that differ from every run's. The others are exports."""

    def read_content(file: Path) -> tuple[bytes, int]:
        try:
            return file.read_bytes(), (file.parent / "edit.safetensors").stat().st_size
        except OSError:
            return b"", 0

    runs = {read_content(file) for file in files if (file.parent / "job.json").exists()}
    return [file for file in files if (file.parent / "job.json").exists() or read_content(file) not in runs]
