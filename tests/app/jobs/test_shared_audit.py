"""An audit of a job that several processes share: the same images, rows and result as of one."""

from pathlib import Path

import psutil
import pytest

from app.jobs import shared_audit
from app.jobs.execution import run_job
from app.jobs.plan import JobSpec
from erasure.concept import Concept
from erasure.families.stable_diffusion import StableDiffusion
from eval.auditing.plan import AuditPlan
from eval.suites.suite import load_suite
from tests import tiny
from tests.factories import write_one_step_suite


def test_two_processes_make_the_audit_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(tiny.save_pipeline(tmp_path / "model", size=16, levels=3))
    suite = str(write_one_step_suite(tmp_path))
    spec = JobSpec(concepts=(Concept(name="neon", kind="style"),), method="negative_prompt", model=source, suite=suite)
    shards: list[tuple[int, int]] = []
    generate = shared_audit.generate_and_attack
    monkeypatch.setattr(shared_audit, "generate_and_attack", lambda prepared, shard: (shards.append(shard), generate(prepared, shard)))
    audits = []
    for count in (1, 2):
        monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / f"cache-{count}"))
        monkeypatch.setattr("app.jobs.execution.count_processes", lambda model, plan, count=count: count)
        run_job(tmp_path / str(count), spec)
        (audit,) = (tmp_path / str(count)).glob("audit-*")
        audits.append(audit)
    assert shards == [(0, 2)]
    for name in ("result.json", "samples.jsonl", "job.json"):
        assert (audits[0] / name).read_bytes() == (audits[1] / name).read_bytes(), name
    images = [{path.relative_to(audit): path.read_bytes() for path in audit.glob("images/*/*.png")} for audit in audits]
    assert images[0] == images[1] and len(images[0]) == 12


def test_processes_are_as_many_as_cores_and_memory_allow(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    (plan,) = AuditPlan.for_concepts(["neon"], load_suite("pocket-dev"), "smoke")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert shared_audit.count_processes(model, plan) == shared_audit.MAX_PROCESSES
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert shared_audit.count_processes(model, plan) == 2
    memory = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(shared_audit.psutil, "virtual_memory", lambda: memory)
    assert shared_audit.count_processes(model, plan) == 1
    monkeypatch.undo()
    monkeypatch.setattr(shared_audit, "MIN_SAMPLES", 10_000)
    assert shared_audit.count_processes(model, plan) == 1
