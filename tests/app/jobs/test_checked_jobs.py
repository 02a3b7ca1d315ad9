"""What a plan gets wrong is said before its first job starts: all jobs in one message, in the words of the plan."""

from pathlib import Path

import pytest

from app.commands.jobs_run import RunCommand, run_plan
from erasure.errors import UserError

PLAN = """
model: {model}
out: {out}
kind: style
jobs:
  - {{concept: neon, method: uce, fields: {{erase_weight: -1}}}}
  - {{concept: sketch, method: uce, fields: {{project: -3}}}}
  - {{concept: watercolor, method: esd, fields: {{steps: abc}}}}
  - {{concept: blueprint, method: uce, suite: pockett}}
  - {{concept: pointillism, method: uce}}
"""


@pytest.mark.parametrize("dry_run", [True, False])
def test_values_suites_and_models_are_checked_before_the_first_job(tmp_path: Path, dry_run: bool) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.format(model="pocket", out=tmp_path / "runs"))
    with pytest.raises(UserError) as refused:
        run_plan(RunCommand(plan=path, dry_run=dry_run))
    message = str(refused.value)
    assert message.startswith("the plan has 4 faults: (1) job neon · uce") and "pointillism" not in message
    assert "erase_weight" in message and "project must not be negative, got -3" in message and "--" not in message
    assert "steps" in message and "'pockett'" in message
    assert not list((tmp_path / "runs").rglob("spec.json"))


def test_a_model_that_cannot_exist_is_one_fault(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(f"out: {tmp_path}\njobs: [{{concept: neon, kind: style, method: uce, model: pockett}}]")
    with pytest.raises(UserError, match=r"job .*no model at 'pockett'"):
        run_plan(RunCommand(plan=path))
