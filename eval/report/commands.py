"""The commands that make an audit and its report again. Imports no torch."""

import re
import shlex
from pathlib import Path

from eval.records.audit_result import AuditResult
from eval.suites.suite import suite_names

PLACEHOLDER = re.compile(r"(^| )(EDIT|LIST|RETRAINED|DIR|BASE|SUITE\.yaml)(-\d+)?( |$)", re.MULTILINE)
DTYPE_FLAGS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def audit_command(folder: Path, result: AuditResult) -> str:
    """Return the command that makes this audit; words in capitals stand for files that the record does not name."""
    job, edits = result.job, result.edits
    if result.external_images:
        return _external_audit_command(folder, result)
    is_external = any(edit.method == "external" for edit in edits)
    has_edit_folder = len(edits) == 1 and (folder.parent / "edit.json").is_file()
    paths = [str(folder.parent)] if has_edit_folder else [f"EDIT-{i + 1}" if len(edits) > 1 else "EDIT" for i in range(len(edits))]
    suite = suite_argument(result)
    parts = ["erasure", "audit", *paths, "--suite", suite, "--tier", job.tier]
    if is_external:
        concepts = [concept for edit in edits for concept in edit.concepts]
        names = "; ".join(dict.fromkeys(concept.name for concept in concepts))
        parts += ["--concept", names, "--kind", concepts[0].kind, "--model", edits[0].base.source]
    parts += ["--strength", f"{job.strength:g}"] if job.strength != 1 else []
    parts += ["--dtype", DTYPE_FLAGS[job.compute]] if job.compute in DTYPE_FLAGS else []
    parts += ["--resolution", str(job.resolution)] if job.resolution else []
    parts += ["--vae", job.vae] if job.vae != "whole" else []
    parts += ["--only", job.only] if job.only else []
    parts += ["--replay", "LIST"] if job.replay else []
    parts += ["--prompt-list", "LIST"] if suite in set(suite_names()) - set(suite_names(complete=True)) else []
    retrained = [f"RETRAINED-{i + 1}" for i in range(len(job.retrained))]
    parts += ["--retrained", *retrained] if retrained else []
    parts += ["--keep-images", job.keep_images] if job.keep_images != "all" else []
    parts += [] if has_edit_folder else ["--out", str(folder)]
    return " ".join(shlex.quote(part) for part in parts)


def _external_audit_command(folder: Path, result: AuditResult) -> str:
    """Return the command that audits these external images."""
    (edit,) = result.edits
    (concept,) = edit.concepts
    parts = ["erasure", "audit", "images", "DIR", *(["--base", "BASE"] if result.job.base else []), "--suite", suite_argument(result)]
    return " ".join(shlex.quote(part) for part in [*parts, "--concept", concept.name, "--kind", concept.kind, "--out", str(folder)])


def suite_argument(result: AuditResult) -> str:
    """Return the value of --suite: the name of a shipped suite, or of the user's file."""
    name = result.job.suite
    return result.suite_file or (name if name in suite_names() else "SUITE.yaml")


def report_command(folder: Path, gates_source: str) -> str:
    """Return the command that decides by the thresholds of another file."""
    return " ".join(shlex.quote(part) for part in ("erasure", "audit", "report", str(folder), "--suite", gates_source or "SUITE.yaml"))


def has_placeholders(command: str) -> bool:
    """Return whether a command has words in capitals that stand for files."""
    return PLACEHOLDER.search(command) is not None
