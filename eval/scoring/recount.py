"""Audits on disk: the result of a finished one, its rows, and both counted again under another suite's thresholds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erasure.errors import UserError
from erasure.storage.files import Damaged
from erasure.storage.run import difference, digest
from eval.records import OLD, check_result, is_audit, read_result
from eval.retrained.gap import gaps
from eval.scoring.attack_rates import under_attack
from eval.scoring.counting import Row, counted
from eval.scoring.gates import Gate, only_of
from eval.scoring.judge_scores import AXES, judges_of, lines, samples_digest
from eval.scoring.published import as_published
from eval.suites.suite import Suite


def finished(out: Path) -> dict[str, Any]:
    """The result of a finished audit.

    Raises:
        UserError: there is none in that folder, or it does not hold what an audit writes.
        Damaged: it was changed after the audit wrote it.
    """
    if not (out / "result.json").is_file():
        raise UserError(f"no finished audit at {out}: expected result.json there; `erasure audit EDIT` makes one.")
    result = read_result(out)
    if not is_audit(result):
        raise UserError(f"{out} holds no audit; give the audit-... folder inside it.")
    if "attacks" not in result:
        raise UserError(OLD.format(out))
    check_result(result, str(out / "result.json"))
    return result


def gates_of(out: Path, result: Mapping[str, Any]) -> tuple[Gate, ...]:
    """The gates of the suite that an audit was made with.

    Raises:
        UserError: an audit of an earlier version, which does not hold them.
    """
    if "gates" not in result:
        raise UserError(f"{out} was made by an earlier version and does not hold its gates; name the suite with --suite.")
    return tuple(Gate(**fields) for fields in result["gates"])


def recounted(out: Path, suite: Suite) -> dict[str, Any]:
    """The result of a finished audit, counted again from its rows; `suite` may differ in its gates and in what is apart.

    Its `gates` stay those that the audit was made with: by them a report tells that its thresholds are others.

    Its judges may not: attacks stopped where a judge said so, and cannot be decided again from what is kept.

    Raises:
        UserError: no finished audit, a suite that lacks a label of the rows, or one with other judges than those that read the pictures.
    """
    result, rows = finished(out), rows_of(out)
    if bool(suite.listed) != (result.get("form") == "prompts"):
        raise UserError(f"suite {suite.name} is of another form than the one {out} was made with.")
    for axis, known in (("style", suite.styles), ("object", suite.objects)):
        if foreign := {row[axis] for row in rows if row[axis]} - known.keys():
            raise UserError(f"suite {suite.name} has no {axis} {sorted(foreign)[0]!r}, which {out} asked for.")
    _same_judges(out, result["judges"], suite)
    before = result["models"].get("erased", {"apart": suite.apart})["apart"]
    result |= under_attack(counted(rows, suite, result["axis"], result["targets"], only_of(result)), result["attacks"])
    if "gaps" in result:  # what is apart decides IRA and CRA
        result["gaps"] = gaps(rows, result["axis"], result["targets"], suite.apart, only_of(result))
    if set(before) != set(suite.apart):
        result["apart_by_suite"] = sorted(suite.apart)  # as far from what the audit was made with as other gates
    return {**result, "published": as_published(suite, rows, result)}


def _same_judges(out: Path, read: Mapping[str, Any], suite: Suite) -> None:
    """Complains about a suite whose judges of styles and objects are not those that read the pictures."""
    judges, missing = judges_of(suite)
    for axis in (axis for axis in AXES if axis in read):
        if axis in missing:
            raise UserError(f"nobody can say whether the judge of {axis} of suite {suite.name} is the one that read {out}. {missing[axis]}")
        mine = judges[axis].identity() if axis in judges else {}
        if digest(read[axis]) != digest(mine):
            other = difference(read[axis], mine)
            raise UserError(f"suite {suite.name} has another judge of {axis} than the one that read {out} ({other}); audit again with it.")


def rows_of(out: Path) -> list[Row]:
    """Every picture of both models with what the judges read in it.

    Raises:
        UserError: rows of an earlier version, which do not say how a prompt asks.
        Damaged: not the rows that the audit's result was counted from.
    """
    rows, result = lines(out / "samples.jsonl"), out / "result.json"
    if result.is_file() and read_result(out).get("samples_sha256") != samples_digest(out):
        raise Damaged(f"{out / 'samples.jsonl'} is damaged: it is not what {result} was counted from; audit again with the same command.")
    if any("role" not in row for row in rows):
        raise UserError(OLD.format(out))
    return rows
