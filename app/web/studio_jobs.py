"""The jobs of a studio: queue an erasure or an audit, put the queue in another order, rename and delete."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.jobs import queue
from app.jobs.plan import JobSpec
from app.method_words import title_of_method
from app.web.comparison import MAX_PROMPT_LENGTH
from app.web.models import StudioModels
from erasure.concept import Concept, ConceptKind
from erasure.concept_hints import find_hints
from erasure.config.registry import load_class
from erasure.config.seeds import check_seed
from erasure.edits import Edit
from erasure.edits.edit_json import read_edit_info
from erasure.errors import UserError, unknown_value_error
from erasure.methods.base import Method
from erasure.recipes import configure_method
from erasure.storage.files import write_bytes
from erasure.storage.locks import LOCK_FILE, lock_folder
from eval.auditing.plan import AuditPlan
from eval.suites.suite import load_suite

MAX_QUEUED = 200
MAX_NAME_LENGTH = 80
NAME_FILE = "name.txt"
ListedJob = tuple[Path, JobSpec | None]  # the spec is None where it cannot be read


@dataclass(frozen=True)
class StudioJobs:
    """The jobs below a folder.

    Attributes:
        load_edits: finds edits by the source of their model and their names on the page.
        edit_folders: the folders of all edits of a model by name.
    """

    root: Path
    models: StudioModels
    load_edits: Callable[[str, Sequence[str]], list[Edit]]
    edit_folders: Callable[[str], dict[str, Path]]

    def find_hints(self, source: str, concept: str) -> list[str]:
        """Return hints about concepts before anything is queued.

        Raises:
            UserError: A name is empty.
        """
        return find_hints(self.models.get(source).model, parse_names(concept))

    def queue_erasure(
        self,
        source: str,
        concept: str,
        kind: ConceptKind,
        anchor: str,
        method: str,
        method_fields: dict[str, Any],
        seed: int,
        suite: str,
        tier: str = "smoke",
    ) -> Path:
        """Queue an erasure and return the folder of its job.

        Raises:
            UserError: A concept, method or field does not exist, a text is too long, or the queue is full.
        """
        if len(concept) > MAX_PROMPT_LENGTH or len(anchor) > MAX_PROMPT_LENGTH:
            raise UserError(f"a concept can have up to {MAX_PROMPT_LENGTH} characters; this one has {max(len(concept), len(anchor)):,}.")
        concepts = tuple(parse_names(concept, kind, anchor.strip()))
        for requested in concepts if suite else ():
            load_suite(suite).find_concept(requested.name)  # fails now, not after the erasure
        # fails now, not in an hour
        family = self.models.get(source).model.family
        configure_method(load_class("erasure.methods", method, Method), list(concepts), family, method_fields)
        spec = JobSpec(concepts=concepts, method=method, fields=method_fields, seed=check_seed(seed), model=source, suite=suite, tier=tier)
        return self.enqueue(spec)

    def queue_audit(self, source: str, names: Sequence[str], suite: str, tier: str) -> Path:
        """Queue an audit of edits by name and return the folder of its job.

        Raises:
            UserError: No edit is chosen, the suite lacks the concept, or the queue is full.
        """
        if not names:
            raise UserError("choose an edit to audit.")
        edits, folders = self.load_edits(source, names), self.edit_folders(source)
        AuditPlan.for_edits(edits, load_suite(suite), tier)
        return self.enqueue(JobSpec(edits=tuple(str(folders[name]) for name in names), model=source, suite=suite, tier=tier))

    def enqueue(self, spec: JobSpec) -> Path:
        """Queue a job and return its folder. A stopped job is queued again.

        Raises:
            UserError: The queue is full.
        """
        if len(self.waiting()) >= MAX_QUEUED:
            raise UserError(f"{MAX_QUEUED} jobs are waiting already; cancel some, or come back when they are done.")
        folder = self.root / spec.folder_name
        queue.enqueue(folder, spec)
        if queue.read_progress(folder).state in (*queue.STOPPED_STATES, "interrupted"):
            queue.requeue(folder)
        return folder

    def all(self) -> list[ListedJob]:
        """Return every job in the order of the queue, oldest first."""
        return list(queue.find_jobs(self.root)) if self.root.is_dir() else []

    def waiting(self) -> list[Path]:
        """Return the folders of waiting jobs in the order in which they will start."""
        return [folder for folder, _ in self.all() if queue.read_progress(folder).state == "waiting"]

    def folder(self, name: str | None) -> Path:
        """Return the folder of a job. The name is compared with the list, never joined to a path.

        Raises:
            UserError: The job does not exist.
        """
        folders = {folder.name: folder for folder, _ in self.all()}
        if name is None or name not in folders:
            raise unknown_value_error("job", str(name), folders)
        return folders[name]

    def move(self, name: str, way: Literal["up", "down"]) -> None:
        """Let a waiting job change places with the one before or after it.

        Raises:
            UserError: The job is not waiting.
        """
        folder, waiting = self.folder(name), self.waiting()
        if folder not in waiting:
            raise UserError(f"{folder.name} is {queue.read_progress(folder).state}; only a waiting job can be moved.")
        place = waiting.index(folder)
        other = place + (-1 if way == "up" else 1)
        if 0 <= other < len(waiting):
            _swap_times(folder / "spec.json", waiting[other] / "spec.json")

    def resume(self, name: str) -> None:
        """Queue a stopped job again.

        Raises:
            UserError: The job is not stopped.
        """
        folder = self.folder(name)
        state = queue.read_progress(folder).state
        if state not in (*queue.STOPPED_STATES, "interrupted"):
            raise UserError(f"{folder.name} is {state}; only a stopped job can be continued.")
        queue.requeue(folder)

    def rename(self, name: str, title: str) -> None:
        """Give a job a name for people; an empty one brings back the first.

        Raises:
            UserError: The name is too long, or the job does not exist.
        """
        folder, title = self.folder(name), " ".join(title.split())
        if len(title) > MAX_NAME_LENGTH:
            raise UserError(f"a name can have up to {MAX_NAME_LENGTH} characters; this one has {len(title):,}.")
        write_bytes(folder / NAME_FILE, title.encode())

    def delete(self, name: str) -> None:
        """Delete a job with its edit, its audits and its downloads.

        Raises:
            UserError: The job is running or does not exist.
            FolderLocked: Another process works on it.
        """
        folder = self.folder(name)
        if queue.read_progress(folder).state == "running":
            raise UserError(f"{folder.name} is running; cancel it first.")
        with lock_folder(folder, "the studio"):
            (folder / "spec.json").unlink(missing_ok=True)  # first: a folder without it is not a job
            for path in folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif not path.name.startswith(LOCK_FILE):
                    path.unlink()
        shutil.rmtree(folder, ignore_errors=True)


def parse_names(text: str, kind: ConceptKind = "style", anchor: str = "") -> list[Concept]:
    """Return the concepts that a text names, separated by semicolons.

    Raises:
        UserError: A name is empty.
    """
    return [Concept(name=name.strip(), kind=kind, anchor=anchor) for name in text[:MAX_PROMPT_LENGTH].split(";")]


def title_of(folder: Path, spec: JobSpec | None) -> str:
    """Return the display name of a job: what a person called it, else concepts and method, else its folder's name."""
    try:
        if title := (folder / NAME_FILE).read_text(encoding="utf-8").strip():
            return title
    except (OSError, UnicodeDecodeError):
        pass
    if spec is None:
        return folder.name
    if not spec.edits:
        return f"{'; '.join(concept.name for concept in spec.concepts)} by {title_of_method(spec.method)}"
    return f"audit of {' + '.join(name_of_edit(Path(edit)) for edit in spec.edits)}, {spec.suite} {spec.tier}"


def name_of_edit(folder: Path) -> str:
    """Return what an edit erases and how; of an unreadable one its folder's name."""
    try:
        info = read_edit_info(folder / "edit.json")[0]
    except UserError:
        return folder.name
    return f"{'; '.join(concept['name'] for concept in info.concepts)} by {title_of_method(info.method)}"


def _swap_times(first: Path, second: Path) -> None:
    """Let two files change places in the order of `queue.find_jobs`, which goes by time, then by path."""
    times = sorted((os.lstat(first).st_mtime_ns, os.lstat(second).st_mtime_ns))
    if times[0] == times[1]:
        times[1] += 1
    was_first = (os.lstat(first).st_mtime_ns, str(first)) < (os.lstat(second).st_mtime_ns, str(second))
    early, late = (second, first) if was_first else (first, second)
    os.utime(early, ns=(times[0], times[0]))
    os.utime(late, ns=(times[1], times[1]))
