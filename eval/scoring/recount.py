"""Finished audits on disk: load the result and the rows, and recount them under another suite's thresholds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erasure.errors import UserError
from erasure.storage.files import DamagedFile
from erasure.storage.run import describe_difference, hash_record
from eval.records import MADE_BY_EARLIER_VERSION, check_result, is_audit, read_result
from eval.retrained.retrain_gap import model_distances
from eval.scoring.attack_rates import add_attacked_rate
from eval.scoring.counting import AXES, SampleRow, count_rates
from eval.scoring.gates import Gate, only_of
from eval.scoring.judge_scores import available_judges, read_jsonl, samples_digest
from eval.scoring.published import published_figures
from eval.suites.formats import PromptListSuite, Suite


def load_finished_audit(out: Path) -> dict[str, Any]:
    """Return the checked result of a finished audit.

    Raises:
        UserError: the folder has no finished audit, or its result does not fit the schema.
        DamagedFile: the result was changed after the audit wrote it.
    """
    if not (out / "result.json").is_file():
        raise UserError(f"no finished audit at {out}: expected result.json there; `erasure audit EDIT` makes one.")
    result = read_result(out)
    if not is_audit(result):
        raise UserError(f"{out} holds no audit; give the audit-... folder inside it.")
    if "attacks" not in result:
        raise UserError(MADE_BY_EARLIER_VERSION.format(out))
    check_result(result, str(out / "result.json"))
    return result


def audit_gates(out: Path, result: Mapping[str, Any]) -> tuple[Gate, ...]:
    """Return the gates of the suite that an audit was made with.

    Raises:
        UserError: an audit of an earlier version, which does not hold them.
    """
    if "gates" not in result:
        raise UserError(f"{out} was made by an earlier version and does not hold its gates; name the suite with --suite.")
    return tuple(Gate(**fields) for fields in result["gates"])


def recount(out: Path, suite: Suite) -> dict[str, Any]:
    """Recount the result of a finished audit from its rows; `suite` may differ in its gates and its excluded styles.

    `gates` of the result stay those that the audit was made with, so that a report can say that its thresholds differ. The suite's judges
    must be the same: attacks stopped by a judge's scores, which cannot be decided again from the rows.

    Raises:
        UserError: there is no finished audit; the suite has another format, lacks a label of the rows, or has other judges.
        DamagedFile: the result or its rows were changed.
    """
    result, rows = load_finished_audit(out), load_sample_rows(out)
    if isinstance(suite, PromptListSuite) != (result.get("suite_format") == "prompt_list"):
        raise UserError(f"suite {suite.name} has another format than the one {out} was made with.")
    for axis in AXES:
        if unknown_labels := {row[axis] for row in rows if row[axis]} - suite.phrases(axis).keys():
            raise UserError(f"suite {suite.name} has no {axis} {sorted(unknown_labels)[0]!r}, which {out} asks for.")
    _check_same_judges(out, result["judges"], suite)
    excluded_before = result["models"].get("erased", {"excluded": suite.excluded})["excluded"]
    result |= add_attacked_rate(count_rates(rows, suite, result["axis"], result["targets"], only_of(result)), result["attacks"])
    if "model_distances" in result:  # excluded styles change IRA and CRA
        result["model_distances"] = model_distances(rows, result["axis"], result["targets"], suite.excluded, only_of(result))
    if set(excluded_before) != set(suite.excluded):
        result["excluded_by_suite"] = sorted(suite.excluded)  # like changed gates, a report has to mention it
    return {**result, "published": published_figures(suite, rows, result)}


def _check_same_judges(out: Path, identities: Mapping[str, Any], suite: Suite) -> None:
    """Check that the suite's judges of styles and objects are the ones that scored the images."""
    judges, missing = available_judges(suite)
    for axis in (axis for axis in AXES if axis in identities):
        if axis in missing:
            raise UserError(f"the judge of {axis} of suite {suite.name} cannot be compared with the one that scored {out}. {missing[axis]}")
        identity = judges[axis].identity() if axis in judges else {}
        if hash_record(identities[axis]) != hash_record(identity):
            changes = describe_difference(identities[axis], identity)
            raise UserError(
                f"suite {suite.name} has another judge of {axis} than the one that scored {out} ({changes}); audit again with it."
            )


def load_sample_rows(out: Path) -> list[SampleRow]:
    """Return the rows of samples.jsonl: every image of every model with its judge scores.

    Raises:
        UserError: rows of an earlier version, which lack the role of a prompt.
        DamagedFile: they are not the rows that the result was counted from.
    """
    rows, result = read_jsonl(out / "samples.jsonl"), out / "result.json"
    if result.is_file() and read_result(out).get("samples_sha256") != samples_digest(out):
        raise DamagedFile(
            f"{out / 'samples.jsonl'} is damaged: it is not what {result} was counted from; audit again with the same command."
        )
    if any("role" not in row for row in rows):
        raise UserError(MADE_BY_EARLIER_VERSION.format(out))
    return rows
