"""What the audits of finished jobs say, read from their folders. No torch here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.jobs.queue import progress
from erasure.errors import UserError
from erasure.storage.files import read_json, read_sealed
from eval.scoring.gates import INCOMPLETE, WORST, Gate, exit_code, verdict


@dataclass(frozen=True)
class Outcome:
    """One audit of a job."""

    folder: Path
    state: str  # PASS, FAIL, INCONCLUSIVE; UNREADABLE where its report is not there or broken
    code: int  # what `erasure audit` would have ended with


def outcomes(job: Path) -> list[Outcome]:
    """The audits of the job in a folder; none of one that is not done or asked for none."""
    done = read_json(job / "done.json")["audits"] if progress(job).state == "done" else []
    return [_outcome(job / name) for name in done]


def _outcome(folder: Path) -> Outcome:
    try:
        report, result = read_json(folder / "report.json"), read_sealed(folder / "result.json")
        state = report["verdict"]["state"]
        if not report.get("thresholds", {"own": True})["own"]:  # reported again by the thresholds of another file
            state = verdict([Gate(**fields) for fields in result["gates"]], result)["state"]
        return Outcome(folder, state, exit_code(state, result))
    except (UserError, KeyError, TypeError):
        return Outcome(folder, "UNREADABLE", INCOMPLETE)


def counts(found: Sequence[Outcome]) -> str:
    """Verdicts in words: "audits: 2 PASS, 1 FAIL"."""
    if not found:
        return "no audit was asked for, so there is no verdict"
    states = Counter("INCOMPLETE, " * (o.code == INCOMPLETE) + o.state for o in found)
    return "audits: " + ", ".join(f"{n} {state}" for state, n in states.items())


def worst(codes: Sequence[int]) -> int:
    """Of several exit codes the one that is told."""
    return next((code for code in WORST if code in codes), 0)
