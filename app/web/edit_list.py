"""The edits below a folder of runs that fit a model, with their images and what audits counted; and the reports there."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from app.method_words import title_of_method
from erasure.edits.edit_json import EditInfo, read_edit_info
from erasure.errors import UserError
from eval.records.audit_result import AuditResult
from eval.records.rates import CountedRate, RateName
from eval.records.result_files import is_audit, parse_result, read_report_head, read_result, read_run_result

WITHOUT_RUNS = ("images", "scores", "downloads", "__pycache__")  # folders with nothing to find, and many files
CARD_IMAGE = "before-after-0.png"
CAPTION = re.compile(r"^Before \(left\) and after \(right\): (.*)$", re.MULTILINE)  # of erasure.export.model_card


@dataclass(frozen=True)
class FoundRuns:
    """Files below a folder of runs, newest first."""

    edits: tuple[Path, ...]
    results: tuple[Path, ...]
    reports: tuple[Path, ...]


@dataclass(frozen=True)
class ListedEdit:
    """An edit as the page lists it."""

    name: str
    folder: Path
    info: EditInfo

    @property
    def concepts(self) -> str:
        return "; ".join(concept["name"] for concept in self.info.concepts)

    @property
    def is_sensitive(self) -> bool:
        return any(concept["kind"] == "nsfw" for concept in self.info.concepts)

    @property
    def card_image(self) -> Path | None:
        """Images before and after of its model card; None where there are none."""
        path = self.folder / CARD_IMAGE
        return path if path.is_file() else None

    @property
    def card_caption(self) -> str:
        """What the images of its model card were generated from; empty if unknown."""
        card = self.folder / "README.md"
        match = CAPTION.search(card.read_text(encoding="utf-8")) if card.is_file() else None
        return match[1] if match else ""


@dataclass(frozen=True)
class EditAudit:
    """What the newest audit of one edit alone counted of the edited model."""

    rates: Mapping[RateName, CountedRate]
    verdict: str  # empty where no report was written
    folder: Path


def find_runs(root: Path) -> FoundRuns:
    """Find edits, results and reports; folders of images are not entered. Links are not followed."""
    found: dict[str, list[Path]] = {"edit.json": [], "result.json": [], "report.html": []}
    for path, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in WITHOUT_RUNS]
        for name, paths in found.items():
            if name in files:
                paths.append(Path(path) / name)
    for paths in found.values():
        paths.sort(key=lambda path: (-_stamp(path), str(path)))
    return FoundRuns(tuple(found["edit.json"]), tuple(found["result.json"]), tuple(found["report.html"]))


def _stamp(path: Path) -> int:
    try:
        return os.lstat(path).st_mtime_ns
    except OSError:
        return 0  # removed meanwhile


def list_edits(root: Path, fingerprint: str) -> dict[str, ListedEdit]:
    """Return edits that were made on a model, by display name, newest first; without exports."""
    edits: dict[str, ListedEdit] = {}
    for file in exclude_exports(find_runs(root).edits):
        try:
            info = _read_info(file, _stamp(file))
        except UserError:
            continue  # one broken folder must not stop the page
        if info.base["fingerprint"] == fingerprint:
            names = "; ".join(concept["name"] for concept in info.concepts)
            name = f"{names} ({title_of_method(info.method)})" + (f", seed {info.seed}" if info.seed else "")
            name = name if name not in edits else f"{name} [{file.parent.relative_to(root)}]"
            edits[name] = ListedEdit(name, file.parent, info)
    return edits


@lru_cache(maxsize=4096)
def _read_info(file: Path, stamp: int) -> EditInfo:
    return read_edit_info(file)[0]


def exclude_exports(files: Sequence[Path]) -> list[Path]:
    """Return the edit.json files of runs, and those that differ from every run's. The others are exports."""

    def read_content(file: Path) -> tuple[bytes, int]:
        try:
            return file.read_bytes(), (file.parent / "edit.safetensors").stat().st_size
        except OSError:
            return b"", 0

    runs = {read_content(file) for file in files if (file.parent / "job.json").exists()}
    return [file for file in files if (file.parent / "job.json").exists() or read_content(file) not in runs]


def list_reports(root: Path) -> dict[str, str]:
    """Return what reports are called, by the path of their folder below a folder of runs, newest first."""
    return {path.parent.relative_to(root).as_posix(): _read_report_title(path.parent, _stamp(path)) for path in find_runs(root).reports}


@lru_cache(maxsize=4096)
def _read_report_title(folder: Path, stamp: int) -> str:
    when = datetime.fromtimestamp(stamp / 1e9).strftime("%d %b, %H:%M")
    try:
        result = read_result(folder)
    except UserError:
        return f"{folder.name}, {when}"
    concepts = "; ".join(concept.name for edit in result.edits for concept in edit.concepts)
    methods = " + ".join(title_of_method(edit.method) for edit in result.edits)
    return f"{concepts} by {methods}, {result.job.suite} {result.tier}, {when}"


def find_audits(root: Path) -> dict[str, EditAudit]:
    """Return the newest audit of every edit that was audited alone, by the folder of its erasure."""
    digests: dict[str, str] = {}
    audits: dict[str, EditAudit] = {}
    for file in find_runs(root).results:
        digest, audit = _read_result(file, _stamp(file))
        if audit is not None:
            audits.setdefault(digest, audit)
        elif digest:
            digests[str(file.parent)] = digest
    return {folder: audits[digest] for folder, digest in digests.items() if digest in audits}


@lru_cache(maxsize=4096)
def _read_result(file: Path, stamp: int) -> tuple[str, EditAudit | None]:
    """Return an edit's digest, and its audit if the file is that of one; an empty digest for anything else."""
    try:
        record = read_run_result(file.parent)
        if not is_audit(record):
            return str(record.get("edit", "")), None
        result: AuditResult = parse_result(record, file)
        if len(result.job.edits) != 1 or result.erased is None or result.job.strength != 1:
            return "", None
        verdict = read_report_head(file.parent).verdict.state if (file.parent / "report.json").exists() else ""
        return result.job.edits[0], EditAudit(result.erased.rates, verdict, file.parent)
    except (UserError, KeyError, TypeError):
        return "", None
