"""result.json of an audit: written by one function, and checked when it is read, so that all later code can rely on it. No torch here."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from erasure.errors import UserError, unknown_value_error
from erasure.storage.files import DamagedFile, MissingChecksum, read_checksummed_json, read_json
from eval.records.audit_result import AuditResult
from eval.records.convert import parse_record
from eval.records.gates import Gate
from eval.records.report import ReportHead
from eval.records.result_checks import check_figures
from eval.records.row_files import MADE_BY_EARLIER_VERSION


def read_result(folder: Path) -> AuditResult:
    """Return the result of the finished audit in a folder.

    Raises:
        UserError: no result, that of an erasure, one of an earlier version, or one that no audit writes (`parse_result`).
        DamagedFile: unreadable, or changed after it was written.
    """
    path = folder / "result.json"
    if not path.is_file():
        raise UserError(f"no finished audit at {folder}: expected result.json there; `erasure audit EDIT` makes one.")
    record = read_run_result(folder)
    if not is_audit(record):
        raise UserError(f"{folder} holds no audit; give the audit-... folder inside it.")
    return parse_result(record, path)


def audit_gates(folder: Path, result: AuditResult) -> tuple[Gate, ...]:
    """Return the gates of the suite that the audit in a folder was made with.

    Raises:
        UserError: an audit of an earlier version, which does not hold them.
    """
    if result.gates is None:
        raise UserError(f"{folder} was made by an earlier version and does not hold its gates; name the suite with --suite.")
    return result.gates


def read_run_result(folder: Path) -> dict[str, Any]:
    """Return what result.json of an audit or an erasure holds, without its checksum, which is required in that of an audit.

    Raises:
        DamagedFile: unreadable, or changed after it was written.
        UserError: an audit of an earlier version, without a checksum.
    """
    path = folder / "result.json"
    try:
        return read_checksummed_json(path)
    except MissingChecksum as error:
        record = read_checksummed_json(path, required=False)
        if is_audit(record):
            raise UserError(MADE_BY_EARLIER_VERSION.format(folder)) from error
        if not isinstance(record.get("job", {}), dict):
            raise DamagedFile(f"{path} is damaged: its job is not a mapping. Run the command that made it again.") from error
        return record
    except DamagedFile as error:
        raise DamagedFile(f"{error} Run the command that made it again.") from error


def read_report_head(folder: Path) -> ReportHead:
    """Return the verdict and the conclusions of report.json, and where its thresholds came from.

    Raises:
        UserError: no such file, not JSON, or without them.
    """
    path = folder / "report.json"
    record = read_json(path)
    if not isinstance(record, dict):
        raise UserError(f"{path} is not a report.")
    return parse_record({f.name: record[f.name] for f in fields(ReportHead) if f.name in record}, ReportHead, str(path))


def is_audit(record: Mapping[str, Any]) -> bool:
    """Return whether a result is that of an audit, not of an erasure."""
    job = record.get("job")
    return isinstance(job, dict) and job.get("task") == "audit"


def parse_result(record: Mapping[str, Any], path: Path) -> AuditResult:
    """Return the result that a result.json holds.

    Raises:
        UserError: a result of an earlier version; keys or values that no audit writes (all are named); or figures that contradict
            themselves (eval.records.result_checks).
    """
    if "attacks" not in record:
        raise UserError(MADE_BY_EARLIER_VERSION.format(path.parent))
    result = parse_record(record, AuditResult, str(path))
    if result.excluded_by_suite is not None:  # of a recount alone
        raise unknown_value_error(f"key in {path}", "excluded_by_suite", record)
    check_figures(result, str(path))
    return result
