"""Finished audits on disk: load the rows, and recount a result from them under another suite's thresholds."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from erasure.errors import UserError
from erasure.storage.files import DamagedFile
from erasure.storage.run import describe_difference, hash_record
from eval.records.audit_result import AuditResult
from eval.records.axes import AXES
from eval.records.fields import OpenMapping
from eval.records.result_files import read_result, read_run_result
from eval.records.row_files import read_sample_rows
from eval.records.rows import SampleRow
from eval.scoring.assembly import count_again
from eval.scoring.judge_scores import available_judges, samples_digest
from eval.suites.formats import PromptListSuite, Suite


def recount(out: Path, suite: Suite) -> AuditResult:
    """Recount the result of a finished audit from its rows; `suite` may differ in its gates and its excluded styles.

    `gates` of the result stay those that the audit was made with, so that a report can say that its thresholds differ. The suite's judges
    must be the same: attacks stopped by a judge's scores, which cannot be decided again from the rows.

    Raises:
        UserError: there is no finished audit; the suite has another format, lacks a label of the rows, or has other judges.
        DamagedFile: the result or its rows were changed.
    """
    result, rows = read_result(out), load_sample_rows(out)
    if isinstance(suite, PromptListSuite) != result.is_prompt_list:
        raise UserError(f"suite {suite.name} has another format than the one {out} was made with.")
    for axis in AXES:
        if unknown_labels := {row.prompted(axis) for row in rows if row.prompted(axis)} - suite.phrases(axis).keys():
            raise UserError(f"suite {suite.name} has no {axis} {sorted(unknown_labels)[0]!r}, which {out} asks for.")
    _check_same_judges(out, result.judges, suite)
    recounted = count_again(result, rows, suite)
    if result.erased and set(result.erased.excluded) != set(suite.excluded):
        return replace(recounted, excluded_by_suite=tuple(sorted(suite.excluded)))  # like changed gates, a report has to mention it
    return recounted


def _check_same_judges(out: Path, identities: Mapping[str, OpenMapping], suite: Suite) -> None:
    """Check that the suite's judges of styles and objects are the ones that scored the images."""
    judges, missing = available_judges(suite)
    for axis in (axis for axis in AXES if axis in identities):
        if axis in missing:
            raise UserError(f"the judge of {axis} of suite {suite.name} cannot be compared with the one that scored {out}. {missing[axis]}")
        recorded, identity = dict(identities[axis]), judges[axis].identity() if axis in judges else {}
        if hash_record(recorded) != hash_record(identity):
            changes = describe_difference(recorded, identity)
            raise UserError(
                f"suite {suite.name} has another judge of {axis} than the one that scored {out} ({changes}); audit again with it."
            )


def load_sample_rows(out: Path) -> tuple[SampleRow, ...]:
    """Return the rows of samples.jsonl: every image of every model with its judge scores.

    Raises:
        UserError: rows of an earlier version, or that no audit wrote.
        DamagedFile: they are not the rows that the result was counted from.
    """
    result = out / "result.json"
    if result.is_file() and read_run_result(out).get("samples_sha256") != samples_digest(out):
        raise DamagedFile(
            f"{out / 'samples.jsonl'} is damaged: it is not what {result} was counted from; audit again with the same command."
        )
    return read_sample_rows(out / "samples.jsonl")
