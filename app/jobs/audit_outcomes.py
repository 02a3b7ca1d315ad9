"""The verdicts of the audits of finished jobs, read from their folders. This module does not import torch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.jobs.queue import read_progress
from erasure.errors import UserError
from erasure.storage.files import read_json
from eval.records.result_files import audit_gates, read_report_head, read_result
from eval.scoring.gates import EXIT_CODES_WORST_FIRST, EXIT_INCOMPLETE, decide_verdict, exit_code_of


@dataclass(frozen=True)
class AuditOutcome:
    """One audit of a job."""

    folder: Path
    state: str  # PASS, FAIL, INCONCLUSIVE; UNREADABLE where its report is missing or broken
    code: int  # exit code of `erasure audit` for it


def load_outcomes(job: Path) -> list[AuditOutcome]:
    """Return the audits of the job in a folder; empty if the job is not done or has no audit."""
    folder_names = read_json(job / "done.json")["audits"] if read_progress(job).state == "done" else []
    return [_load_outcome(job / name) for name in folder_names]


def _load_outcome(folder: Path) -> AuditOutcome:
    try:
        report, result = read_report_head(folder), read_result(folder)
        state = report.verdict.state
        if not report.thresholds.from_suite:  # the report was rewritten with the thresholds of another file
            state = decide_verdict(audit_gates(folder, result), result).state
        return AuditOutcome(folder, state, exit_code_of(state, result))
    except UserError:
        return AuditOutcome(folder, "UNREADABLE", EXIT_INCOMPLETE)


def summarize_verdicts(audit_outcomes: Sequence[AuditOutcome]) -> str:
    """Count the verdicts: "audits: 2 PASS, 1 FAIL"."""
    if not audit_outcomes:
        return "no audit was requested, so there is no verdict"
    states = Counter("INCOMPLETE, " * (outcome.code == EXIT_INCOMPLETE) + outcome.state for outcome in audit_outcomes)
    return "audits: " + ", ".join(f"{n} {state}" for state, n in states.items())


def worst_exit_code(codes: Sequence[int]) -> int:
    """Return the worst of several exit codes."""
    return next((code for code in EXIT_CODES_WORST_FIRST if code in codes), 0)
