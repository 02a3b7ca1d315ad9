"""Audits on disk: the result of a finished one, its rows, and both counted again under another suite's thresholds."""

from pathlib import Path
from typing import Any

from erasure.errors import UserError
from erasure.run import read_json
from eval.attack_rates import under_attack
from eval.counting import Row, counted
from eval.gates import only_of
from eval.judging import lines
from eval.placing import gaps
from eval.published import as_published
from eval.suites import Suite

OLD = "{} was made by an earlier version of this project; audit again with --fresh."


def finished(out: Path) -> dict[str, Any]:
    """The result of a finished audit.

    Raises:
        UserError: there is none in that folder.
    """
    if not (out / "result.json").is_file():
        raise UserError(f"no finished audit at {out}: expected result.json there; `erasure audit EDIT` makes one.")
    result: dict[str, Any] = read_json(out / "result.json")
    if result.get("job", {}).get("task") != "audit":
        raise UserError(f"{out} holds no audit; give the audit-... folder inside it.")
    if "attacks" not in result:
        raise UserError(OLD.format(out))
    return result


def recounted(out: Path, suite: Suite) -> dict[str, Any]:
    """The result of a finished audit, counted again from its rows; `suite` may differ in its thresholds and in what is apart.

    Raises:
        UserError: no finished audit, or a suite that lacks a label of the rows.
    """
    result, rows = finished(out), rows_of(out)
    if bool(suite.listed) != (result.get("form") == "prompts"):
        raise UserError(f"suite {suite.name} is of another form than the one {out} was made with.")
    for axis, known in (("style", suite.styles), ("object", suite.objects)):
        if foreign := {row[axis] for row in rows if row[axis]} - known.keys():
            raise UserError(f"suite {suite.name} has no {axis} {sorted(foreign)[0]!r}, which {out} asked for.")
    result |= under_attack(counted(rows, suite, result["axis"], result["targets"], only_of(result)), result["attacks"])
    if "gaps" in result:  # what is apart decides IRA and CRA
        result["gaps"] = gaps(rows, result["axis"], result["targets"], suite.apart, only_of(result))
    return {**result, "published": as_published(suite, rows, result)}


def rows_of(out: Path) -> list[Row]:
    """Every picture of both models with what the judges read in it.

    Raises:
        UserError: rows of an earlier version, which do not say how a prompt asks.
    """
    rows = lines(out / "samples.jsonl")
    if any("role" not in row for row in rows):
        raise UserError(OLD.format(out))
    return rows
