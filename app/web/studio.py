"""What the web studio can do, without a page: compare, list edits, queue work. Pages and the API call this."""

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

from app.jobs import queue as jobs
from app.jobs.plan import JobSpec
from app.web.safety import SafetyChecker
from erasure.concept import Concept, ConceptKind
from erasure.concept_hints import find_hints
from erasure.config.registry import load_class
from erasure.config.seeds import check_seed
from erasure.edits import Edit, check_distinct, revert_all
from erasure.edits.edit_json import read_edit_info
from erasure.erasing import apply_edits, configure_method, erase
from erasure.errors import UserError, unknown_value_error
from erasure.families.base import DiffusionModel
from erasure.methods.base import Method
from erasure.methods.uce import UCE
from erasure.pocket.captions import OBJECT_WORDS, STYLE_WORDS, vocabulary
from eval.audit import AuditPlan
from eval.judges.base import Judge
from eval.suites.suite import load_suite

MAX_PROMPT_LENGTH, MAX_IMAGES, MAX_STEPS, MAX_QUEUED = 500, 8, 100, 32
FIRST_PROMPT = "a watercolor picture of a house"
READY_CONCEPT = Concept(name="watercolor", kind="style")  # what the shipped page has erased already


@dataclass(frozen=True)
class Comparison:
    """Pictures of one prompt before and after, from the same noise."""

    seeds: list[int]
    base: Tensor  # (N, 3, H, W) uint8
    erased: Tensor  # (N, 3, H, W) uint8
    scores: list[tuple[dict[str, Any], dict[str, Any]]]  # per picture what the judges read before and after; empty without judges
    sensitive: bool = False  # an edit of the nsfw kind is involved: blurred until asked for
    hidden: tuple[int, ...] = ()  # pictures, before or after, that the safety checker does not let through

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
        """Mean absolute difference over colours of picture i, (H, W) in [0, 1]."""
        return (self.base[i].float() - self.erased[i].float()).abs().mean(0) / 255


@dataclass
class Studio:
    """A loaded model, a folder of runs, and a lock, since edits are applied to the one model in memory."""

    model: DiffusionModel
    root: Path
    is_local: bool = True  # whether everyone who sees the page may name paths of this machine
    checker: SafetyChecker | None = None  # what hides pictures on public pages
    lock: threading.Lock = field(default_factory=threading.Lock)
    base_images: "OrderedDict[tuple[Any, ...], Tensor]" = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.base_fingerprint = self.model.fingerprint()  # once: later an edit may be in place while another thread asks

    @property
    def source(self) -> str:
        return self.model.source

    @property
    def is_pocket(self) -> bool:
        return self.source == "pocket"

    def prepare(self) -> None:
        """A ready erasure for the first look: a closed form that takes two seconds, once."""
        if self.is_pocket:
            method, concepts, _ = configure_method(UCE, [READY_CONCEPT], self.model.family, {})
            out = self.root / "ready" / "watercolor-uce"
            erase(self.model, concepts, method, out=out)
            next(self.compare(FIRST_PROMPT, [], 0, 1, 2, 4.0, 1.0))  # loads the judges and warms the kernels up

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """The model for one request alone, and as the base: an edit that an earlier request left in place is taken out first.

        Raises:
            UserError: it cannot be taken out; then nothing is drawn, since the base would not be the base.
        """
        with self.lock:
            revert_all(self.model.pipe)
            yield

    def edits(self) -> dict[str, Path]:
        """Edits below the runs folder that were made on the loaded model, newest first, by a name for people; exports left out."""
        files = exclude_exports(sorted(self.root.glob("**/edit.json"), key=lambda path: -os.lstat(path).st_mtime_ns))
        paths: dict[str, Path] = {}
        for file in files:
            try:
                edit = Edit({}, read_edit_info(file)[0])
            except UserError:
                continue  # one broken folder must not take the page down; loading it by name says what is wrong
            if edit.info.base["fingerprint"] == self.base_fingerprint:
                name = edit.name + (f", seed {edit.info.seed}" if edit.info.seed else "")
                paths[name if name not in paths else f"{name} [{file.parent.relative_to(self.root)}]"] = file.parent
        return paths

    def load_edits(self, names: list[str]) -> list[Edit]:
        """Edits by their names.

        Raises:
            UserError: a name that is not on the list, or one edit twice.
        """
        available = self.edits()
        for name in names:
            if name not in available:
                raise unknown_value_error("edit", name, available)
        return list(check_distinct([Edit.load(available[name]) for name in names]))

    def compare(
        self, prompt: str, names: list[str], seed: int, count: int, steps: int, guidance: float, strength: float
    ) -> Iterator[Comparison]:
        """Draw pictures with the base and with the edits applied, seeds counting up from `seed`: at first one, then all `count`.

        Raises:
            UserError: a value out of its range, an unknown edit, edits that do not go together.
        """
        ranges = (
            ("pictures", count, 1, MAX_IMAGES),
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
        """The base's pictures do not depend on edits; the last few are kept."""
        key = (prompt, tuple(seeds), steps, guidance)
        if key not in self.base_images:
            self.base_images[key] = self._generate(prompt, seeds, steps, guidance)
            while len(self.base_images) > 32:
                self.base_images.popitem(last=False)
        return self.base_images[key]

    def _generate(self, prompt: str, seeds: list[int], steps: int, guidance: float) -> Tensor:
        with torch.no_grad():
            latents = self.model.sample([prompt] * len(seeds), seeds, steps=steps, guidance=guidance)
            return (self.model.decode(latents).cpu() * 255).round().to(torch.uint8)

    def _judge_scores(self, base: Tensor, erased: Tensor, prompt: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        if not self.is_pocket:
            return []
        images = torch.cat((base, erased)).float() / 255
        scores_by_axis = {
            axis: load_class("eval.judges", f"pocket_{axis}", Judge)().score(images, [prompt] * len(images)) for axis in ("style", "object")
        }
        scores_by_image = [{axis: scores_by_axis[axis][i] for axis in scores_by_axis} for i in range(len(images))]
        return list(zip(scores_by_image[: len(base)], scores_by_image[len(base) :], strict=True))

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that the shipped model never saw in a caption; nothing is known about other models."""
        if not self.is_pocket:
            return []
        caption_words = vocabulary()
        return list(dict.fromkeys(word for word in re.findall(r"[^\W_][\w'-]*", prompt.lower()) if word not in caption_words))

    def known_concepts(self) -> dict[str, list[str]]:
        """What the shipped model can draw."""
        if not self.is_pocket:
            return {}
        return {
            "styles": [words.names[0] for words in STYLE_WORDS.values()],
            "things": [words.names[0] for key, words in OBJECT_WORDS.items() if key not in ("ada", "otto")],
            "people": [words.names[0] for key, words in OBJECT_WORDS.items() if key in ("ada", "otto")],
        }

    def hints(self, concept: str) -> list[str]:
        """What is odd about concepts, before anything is queued.

        Raises:
            UserError: an empty name.
        """
        return find_hints(self.model, [Concept(name=name.strip()) for name in concept[:MAX_PROMPT_LENGTH].split(";")])

    def queue_erasure(
        self, concept: str, kind: ConceptKind, anchor: str, method: str, method_fields: dict[str, Any], seed: int, suite: str
    ) -> Path:
        """Queue an erasure.

        Raises:
            UserError: a concept, method or field that does not exist; a full queue.
        """
        concepts = tuple(Concept(name=name.strip(), kind=kind, anchor=anchor.strip()) for name in concept.split(";"))
        if len(concept) > MAX_PROMPT_LENGTH or len(anchor) > MAX_PROMPT_LENGTH:
            raise UserError(f"a concept may have {MAX_PROMPT_LENGTH} characters, this one has {max(len(concept), len(anchor)):,}.")
        for each in concepts if suite else ():
            load_suite(suite).find_concept(each.name)  # complains now, not after the erasure
        configure_method(
            load_class("erasure.methods", method, Method), list(concepts), self.model.family, method_fields
        )  # complains now, not in an hour
        spec = JobSpec(concepts=concepts, method=method, fields=method_fields, seed=check_seed(seed), model=self.source, suite=suite)
        return self.enqueue(spec)

    def queue_audit(self, names: list[str], suite: str, tier: str) -> Path:
        """Queue an audit of edits by name.

        Raises:
            UserError: no edit chosen, a suite without the concept, a full queue.
        """
        if not names:
            raise UserError("choose an edit to audit.")
        edits, available = self.load_edits(names), self.edits()
        AuditPlan.for_edits(edits, load_suite(suite), tier)
        return self.enqueue(JobSpec(edits=tuple(str(available[name]) for name in names), model=self.source, suite=suite, tier=tier))

    def enqueue(self, spec: JobSpec) -> Path:
        waiting = [folder for folder, _ in self.jobs() if jobs.read_progress(folder).state == "waiting"]
        if len(waiting) >= MAX_QUEUED:
            raise UserError(f"{MAX_QUEUED} jobs are waiting already; cancel some, or come back when they are done.")
        folder = self.root / "jobs" / spec.folder_name
        jobs.enqueue(folder, spec)
        if jobs.read_progress(folder).state in (*jobs.STOPPED_STATES, "interrupted"):
            jobs.requeue(folder)
        return folder

    def jobs(self) -> list[tuple[Path, JobSpec | None]]:
        """Every job of this studio, oldest first; without what was asked for where it is broken."""
        return list(jobs.find_jobs(self.root / "jobs")) if (self.root / "jobs").is_dir() else []

    def job_folder(self, name: str) -> Path:
        """The folder of a job by its name.

        Raises:
            UserError: no such job. A name is compared, never joined to a path.
        """
        folders_by_name = {folder.name: folder for folder, _ in self.jobs()}
        if name not in folders_by_name:
            raise unknown_value_error("job", name, folders_by_name)
        return folders_by_name[name]


def exclude_exports(files: Sequence[Path]) -> list[Path]:
    """The edit.json files that are not exports of another one: those of runs, and whatever equals no run's."""

    def content(file: Path) -> tuple[bytes, int]:
        try:
            return file.read_bytes(), (file.parent / "edit.safetensors").stat().st_size
        except OSError:
            return b"", 0

    runs = {content(file) for file in files if (file.parent / "job.json").exists()}
    return [file for file in files if (file.parent / "job.json").exists() or content(file) not in runs]
