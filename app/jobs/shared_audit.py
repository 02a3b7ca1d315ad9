"""The long part of a job's audit on all cores of a machine without a GPU: other processes take shards of it, as with `audit --workers`."""

import os
from collections.abc import Sequence
from pathlib import Path

import psutil

from app.jobs.child_processes import as_one_of, start_shard_processes
from erasure.families.base import DiffusionModel
from erasure.families.placement import bytes_of, components_of
from eval.auditing.plan import AuditPlan
from eval.auditing.prepare import PreparedAudit
from eval.auditing.run import generate_and_attack

MAX_PROCESSES = 8
MIN_SAMPLES = 50  # fewer are generated before another process has loaded its libraries
ROOM = 3  # a process needs this many times the bytes of its weights


def count_processes(model: DiffusionModel, plan: AuditPlan) -> int:
    """Return how many processes should share an audit: one for each core, as far as memory reaches; on a GPU one."""
    if model.device.type != "cpu" or len(plan.samples) < MIN_SAMPLES:
        return 1
    weights = sum(bytes_of(network) for network in components_of(model.pipe).values())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, MAX_PROCESSES, 1 + int(psutil.virtual_memory().available / (ROOM * weights))))


def generate_together(prepared: PreparedAudit, edits: Sequence[Path], suite: str, count: int) -> None:
    """Generate and attack with several processes; this one takes the first shard.

    Args:
        edits: the folders of the audited edits.
        suite: as the job names it.
        count: of processes, at least 2.

    Raises:
        UserError: A process failed.
    """
    source, tier = prepared.model.source, prepared.plan.tier
    common = ["--model", source, "--suite", suite, "--tier", tier, "--out", str(prepared.out), "--device", "cpu"]
    with start_shard_processes(count - 1) as others:
        others.begin([[*common, "--shard", f"{i}/{count}", "--", *map(str, edits)] for i in range(2, count + 1)])
        with as_one_of(count):
            generate_and_attack(prepared, (0, count))
        others.wait()
