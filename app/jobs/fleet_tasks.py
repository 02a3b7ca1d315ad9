"""What passes between the driver of a fleet and its workers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.jobs.plan import JobSpec
from erasure.storage.locks import Shard
from erasure.storage.processes import Process

# "job": all of it, or what its earlier stages have left; "erasure": its first stage; "shard": a part of the audit's images and attacks
Stage = Literal["job", "erasure", "shard"]
Outcome = Literal["done", "failed", "unfinished", "locked"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One stage of one job, as a worker gets it."""

    folder: Path  # of the job, absolute, on a disk that all machines share
    spec: JobSpec
    stage: Stage
    shard: Shard = (0, 1)  # of the stage "shard"
    seconds_before: float = 0.0  # what earlier stages of the job took


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """How a stage ended."""

    outcome: Outcome
    seconds: float
    message: str = ""  # why it is not done
    locked_by: Process | None = None  # where another process works on the job


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """A worker, as it introduces itself when it starts."""

    process: Process
    node_id: str
    device: str


Work = Callable[[Task], None]
