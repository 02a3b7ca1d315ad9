"""Audits of jobs: their verdicts are the exit code, and a wrong suite is refused before the erasure."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.jobs import queue
from app.jobs.audit_outcomes import load_outcomes, summarize_verdicts, worst_exit_code
from app.jobs.execution import plan_audits
from app.jobs.plan import JobSpec, load_plan
from erasure.errors import UserError
from erasure.loading.loader import load_model
from erasure.storage.run import write_json
from eval.records.convert import to_record
from tests import tiny
from tests.command_line import run_words
from tests.eval.factories import audit_counts, audit_result
from tests.factories import write_one_step_suite
from tests.planted import reseal


@pytest.mark.parametrize("empty", [{"method": []}, {"seed": []}, {"fields": {"lr": []}}, {"concept": []}, {"suite": []}])
def test_a_plan_without_jobs_is_refused(empty: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"jobs": [{"concept": "neon", **empty}]}))
    with pytest.raises(UserError, match=r"defines no job|names no concept"):
        load_plan(tmp_path / "plan.yaml")
    (tmp_path / "spec.json").write_text(json.dumps({"edits": ["x"]}))
    with pytest.raises(UserError, match="no suite to audit them with"):
        JobSpec.load(tmp_path / "spec.json")


def finished_job(folder: Path, *states: str, missing: bool = False) -> None:
    """The folder of a job that is done, with audits of these verdicts."""
    names = [f"audit-{i}" for i in range(len(states))]
    result = audit_result(audit_counts(models={}), missing={"style": "no weights"} if missing else {})
    thresholds = {"digest": "0" * 16, "from_suite": True, "file": None}
    for name, state in zip(names, states, strict=True):
        (folder / name).mkdir(parents=True)
        head = {"verdict": {"state": state, "summary": "", "reasons": []}, "thresholds": thresholds, "conclusions": []}
        write_json(folder / name / "report.json", head)
        reseal(folder / name, to_record(result))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "done.json", {"audits": names, "edits": [], "seconds": 1.0})


@pytest.mark.parametrize(
    ("states", "code", "words"),
    [
        ([("PASS",), ("PASS",)], 0, "2 of 2 jobs done; audits: 2 PASS"),
        ([("PASS",), ("FAIL", "PASS")], 3, "2 of 2 jobs done; audits: 2 PASS, 1 FAIL"),
        ([("PASS",), ("INCONCLUSIVE",)], 4, "audits: 1 PASS, 1 INCONCLUSIVE"),
        ([("FAIL",), ("INCONCLUSIVE",)], 3, "audits: 1 FAIL, 1 INCONCLUSIVE"),
        ([(), ()], 0, "2 of 2 jobs done; no audit was requested, so there is no verdict"),
    ],
)
def test_jobs_that_are_all_skipped_report_their_verdicts(
    states: list[tuple[str, ...]], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_file = tmp_path / "plan.yaml"
    plan_file.write_text(yaml.safe_dump({"out": str(tmp_path / "out"), "jobs": [{"concept": "neon", "seed": [0, 1]}]}))
    plan = load_plan(plan_file)
    for spec, verdicts in zip(plan.jobs, states, strict=True):
        finished_job(plan.folder(spec), *verdicts)
    assert run_words("jobs", "run", str(plan_file)) == code
    output = capsys.readouterr()
    assert words in output.out
    assert output.err.count("report.html") == sum(state != "PASS" for verdicts in states for state in verdicts)
    for spec in plan.jobs:
        queue.enqueue(plan.folder(spec), spec)
    assert run_words("jobs", "status", str(plan_file)) == 0
    assert all(state in capsys.readouterr().out for state in states[0][:1])


def test_an_incomplete_or_unreadable_audit_of_a_job_is_not_a_pass(tmp_path: Path) -> None:
    finished_job(tmp_path / "a", "FAIL", missing=True)
    finished_job(tmp_path / "b", "PASS")
    (tmp_path / "b" / "audit-0" / "report.json").write_text("{")
    assert [o.code for name in ("a", "b") for o in load_outcomes(tmp_path / name)] == [2, 2]
    assert summarize_verdicts(load_outcomes(tmp_path / "a")) == "audits: 1 INCOMPLETE, FAIL"
    assert load_outcomes(tmp_path / "c") == []
    assert [worst_exit_code(codes) for codes in ([], [0, 4], [4, 2], [2, 3, 4])] == [0, 4, 2, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"suite": "pockett"}, "Did you mean 'pocket'"),
        ({"suite": "sd"}, "unknown concept for suite sd 'neon'"),
        ({"suite": "nudity"}, "unknown concept for suite nudity 'neon'"),
        ({"suite": "unlearndiffatk", "concept": {"name": "nudity", "kind": "nsfw"}}, "ships no prompts"),
        ({"suite": "small"}, "of suite pocket takes only images of 64x64 pixels"),
    ],
)
def test_a_wrong_suite_is_found_before_the_erasure(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    """By run, by run --dry-run, and by the job's own process; nothing is erased."""
    model = tiny.save_pipeline(tmp_path / "small")
    change = {**change, "suite": str(write_one_step_suite(tmp_path)) if change["suite"] == "small" else change["suite"]}
    plan_file = tmp_path / "plan.yaml"
    entry = {"concept": "neon", "method": "uce", **change}
    plan_file.write_text(yaml.safe_dump({"model": str(model), "out": str(tmp_path / "out"), "jobs": [entry]}))
    plan = load_plan(plan_file)
    with pytest.raises(UserError, match=words):
        run_words("jobs", "run", str(plan_file), "--dry-run")
    with pytest.raises(UserError, match=words):
        plan_audits(load_model(str(model)), plan.jobs[0])
    if "64x64" not in words:  # which needs the model, and so the job's own process
        with pytest.raises(UserError, match=words):
            run_words("jobs", "run", str(plan_file))
        assert not (tmp_path / "out").exists()
