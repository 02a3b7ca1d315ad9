"""A fleet: the jobs of a plan on a Ray cluster, one worker per GPU or per group of cores.

Ray places the workers, starts them again where one is lost, and passes tasks and results; this module only decides which stage of which
job a free worker gets next. Jobs stay what they are without a fleet: folders with locks, on a disk that all machines share. What is done
is read from their files, so a driver that was killed continues where it stopped.
"""

import os
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.jobs.cluster import last_line
from app.jobs.fleet_tasks import Task, TaskResult, Work, WorkerInfo
from app.jobs.fleet_worker import FleetWorker
from app.jobs.plan import JobSpec
from erasure.errors import UserError
from erasure.storage.files import print_message, write_checksummed_json
from erasure.storage.processes import Process
from erasure.storage.run import cache_folder

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

MAX_LOSSES = 3  # of the worker of one job; a fourth would hardly end otherwise
MAX_SHARDS = 32  # of one audit
GROW_SECONDS, CANCEL_SECONDS, RETRY_SECONDS = 5.0, 1.0, 1.0
PASSED_ON = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")  # variables of the command that its workers get too
LOCKED_SECONDS = 60.0  # how long a fleet without other work waits for jobs that somebody else has locked


@dataclass(eq=False)
class FleetJob:
    """A job on its way through the fleet."""

    folder: Path
    spec: JobSpec
    shards_left: int = 0  # of its audits, once they are split
    seconds: float = 0.0  # what its stages took
    losses: int = 0  # workers lost with it
    error: TaskResult | None = None  # of the first stage that did not end well
    locked_by: Process | None = None
    lock_message: str = ""  # who that is, and what a person can do
    not_before: float = 0.0  # when a job that was locked is tried again


@dataclass(eq=False)
class FleetWorkerSlot:
    """A worker as the driver sees it. Without a pending call it is free, or dead."""

    actor: "ActorHandle[Any]"  # of FleetWorker
    pending: "ObjectRef[Any] | None" = None  # of `introduce`, or of `run` where it has a job
    info: WorkerInfo | None = None  # None until it has started, and after it was lost
    job: FleetJob | None = None
    task: Task | None = None
    model: str = ""  # the source of the model it holds
    failure: str = ""  # why it cannot start


@dataclass
class Fleet:
    """Workers on a cluster and the jobs that wait for them. `submit` jobs, then call `step` until `unfinished` is 0.

    Args:
        cores: cores of a worker on a cluster without GPUs; otherwise a worker has one GPU.
        work: what a worker does with a task, instead of the job itself; for measurements of the fleet alone.
    """

    cores: int = 1
    work: Work | None = None
    workers: list[FleetWorkerSlot] = field(default_factory=list)
    waiting: deque[tuple[FleetJob, Task]] = field(default_factory=deque)
    unfinished: int = 0
    losses: int = 0  # stages whose worker was lost
    has_audits: bool = False
    ended: dict[str, Process] = field(default_factory=dict)  # workers that Ray has replaced, or whose machine it has lost, by mark
    last_growth: float = 0.0
    last_cancel_check: float = 0.0
    last_progress: float = field(default_factory=time.monotonic)

    def submit(self, folder: Path, spec: JobSpec) -> None:
        """Queue a job whose folder holds its spec.json."""
        job = FleetJob(folder.absolute(), spec)
        self.unfinished += 1
        self.has_audits |= bool(spec.suite)
        self.waiting.append((job, first_task(job)))

    @property
    def running(self) -> list[FleetWorkerSlot]:
        """The workers that have a job."""
        return [worker for worker in self.workers if worker.job]

    def step(self, timeout: float) -> list[FleetJob]:
        """Hand out tasks, wait for a result at most `timeout` seconds, and return the jobs that ended; `error` says how.

        Raises:
            UserError: No worker can start.
        """
        import ray

        self._grow()
        self._stop_cancelled()
        self._hand_out()
        pending = {worker.pending: worker for worker in self.workers if worker.pending is not None}
        if not pending:
            self._check_can_start()
            time.sleep(min(timeout, RETRY_SECONDS))
            return []
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=timeout)
        if ready:  # and what else is ready by now
            ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0)
        ended = [job for ref in ready if (job := self._receive(pending[ref]))]
        self.unfinished -= len(ended)
        return ended

    def is_stuck(self) -> bool:
        """Return whether nothing has happened for a while, since somebody else has locked all the jobs that are left."""
        return not self.running and time.monotonic() - self.last_progress > LOCKED_SECONDS and all(job.locked_by for job, _ in self.waiting)

    def lock_messages(self) -> list[str]:
        """Return what a person can do about the jobs that somebody else has locked."""
        return list(dict.fromkeys(job.lock_message for job, _ in self.waiting if job.locked_by))

    def drop_waiting(self) -> None:
        """Forget the jobs that no worker has begun; those under way go on."""
        started = {id(worker.job) for worker in self.running}
        kept = deque((job, task) for job, task in self.waiting if id(job) in started)
        self.unfinished -= len({id(job) for job, _ in self.waiting} - started)
        self.waiting = kept

    def _grow(self) -> None:
        """Ask Ray for as many workers as the cluster can hold and the jobs can use; it may have grown."""
        import ray

        if time.monotonic() - self.last_growth < GROW_SECONDS and self.workers:
            return
        self.last_growth = time.monotonic()
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        alive = {node["NodeID"] for node in nodes}
        self.ended |= {w.info.process.mark: w.info.process for w in self.workers if w.info and w.info.node_id not in alive}
        resource, amount = ("GPU", 1) if any(node["Resources"].get("GPU") for node in nodes) else ("CPU", self.cores)
        capacity = sum(int(node["Resources"].get(resource, 0) // amount) for node in nodes)
        wanted = capacity if self.has_audits else min(capacity, self.unfinished)
        options = {"num_gpus": 1, "num_cpus": 0} if resource == "GPU" else {"num_cpus": self.cores}
        actor_class: Any = ray.remote(FleetWorker)
        environment = {"env_vars": {name: os.environ[name] for name in PASSED_ON if name in os.environ}}
        environment["env_vars"]["ERASURE_CACHE"] = str(cache_folder().absolute())  # one for all workers, so that each thing is made once
        for _ in range(wanted - len(self.workers)):
            actor = actor_class.options(max_restarts=-1, runtime_env=environment, **options).remote(str(Path.cwd()), self.work)
            self.workers.append(FleetWorkerSlot(actor, actor.introduce.remote()))
        if not self.workers and self.unfinished:
            raise UserError(f"no machine of the cluster has {amount} {resource} for a worker; give fewer --worker-cores, or add machines.")

    def _hand_out(self) -> None:
        """Give every free worker the next task."""
        for worker in self.workers:
            if worker.pending is None and worker.info and (entry := self._choose(worker)):
                job, task = entry
                worker.job, worker.task, worker.model = job, replace(task, seconds_before=job.seconds), job.spec.model
                worker.pending = worker.actor.run.remote(worker.task, tuple(self.ended.values()))

    def _choose(self, worker: FleetWorkerSlot) -> tuple[FleetJob, Task] | None:
        """Take the next task for a worker from the queue: the first one of the model that it holds, or else the first one."""
        now, first = time.monotonic(), None
        for entry in self.waiting:
            job, _ = entry
            if job.not_before > now or (job.locked_by and self._is_for_another_machine(job.locked_by, worker)):
                continue
            if job.spec.model == worker.model or not worker.model:
                first = entry
                break
            first = first or entry
        if first:
            self.waiting.remove(first)
        return first

    def _is_for_another_machine(self, holder: Process, worker: FleetWorkerSlot) -> bool:
        """Return whether workers of another machine should try a locked job: only the holder's own machine can know that it has ended."""
        machines = {w.info.process.machine_id for w in self.workers if w.info}
        return holder.machine_id in machines and worker.info is not None and holder.machine_id != worker.info.process.machine_id

    def _receive(self, worker: FleetWorkerSlot) -> FleetJob | None:
        """Take the result of a worker's call; return its job if that has ended."""
        import ray
        from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

        ref, worker.pending = worker.pending, None
        job, task, worker.job, worker.task = worker.job, worker.task, None, None
        try:
            answer = ray.get(ref) if ref is not None else None
        except RayActorError as error:
            if isinstance(error, ActorDiedError) and job is None:  # it could not even start, or start again
                self.ended |= {worker.info.process.mark: worker.info.process} if worker.info else {}
                worker.failure, worker.info = last_line(str(error)), None
                return None
            worker.pending, worker.model = worker.actor.introduce.remote(), ""  # answered once Ray has started it again
            return self._take_back(job, task) if job and task else None
        except RayTaskError as error:  # outside the work of a job, as where a machine's installation is broken
            worker.failure, worker.info = last_line(str(error)), None
            return self._take_back(job, task) if job and task else None
        if isinstance(answer, WorkerInfo):
            if worker.info and worker.info.process != answer.process:
                self.ended[worker.info.process.mark] = worker.info.process
            worker.info = answer
            return None
        return self._advance(job, task, answer) if job and task and isinstance(answer, TaskResult) else None

    def _take_back(self, job: FleetJob, task: Task) -> FleetJob | None:
        """Queue the task of a lost worker as the next one; return the job if it was cancelled, or has lost too many workers."""
        job.losses, self.losses = job.losses + 1, self.losses + 1
        if (job.folder / "cancelled").exists():
            job.error = TaskResult(outcome="unfinished", seconds=0.0, message=f"{job.folder.name} was cancelled.")
        elif job.losses >= MAX_LOSSES:
            message = f"its worker was lost {job.losses} times; out of memory? (see {job.folder / 'log.txt'})"
            job.error = TaskResult(outcome="failed", seconds=0.0, message=message)
            write_checksummed_json(job.folder / "error.json", {"error": message, "trace": ""})
        else:
            print_message(f"{job.spec.name}: its worker was lost; another one continues.")
            self.waiting.appendleft((job, task))
            return None
        return self._end_early(job, task)

    def _advance(self, job: FleetJob, task: Task, result: TaskResult) -> FleetJob | None:
        """Queue what follows a stage; return the job if nothing does."""
        job.seconds += result.seconds
        if result.outcome == "locked":
            if job.locked_by is None:
                print_message(f"waiting: {result.message.partition(';')[0]}; this job is tried again until it is free.")
            job.lock_message = result.message
            job.locked_by, job.not_before = result.locked_by, time.monotonic() + RETRY_SECONDS
            self.waiting.append((job, task))
            return None
        job.locked_by, self.last_progress = None, time.monotonic()
        if result.outcome != "done":
            job.error = job.error or result
            return self._end_early(job, task)
        match task.stage:
            case "job":
                return job
            case "erasure":
                count = min(MAX_SHARDS, sum(w.info is not None for w in self.workers) // max(1, self.unfinished))
                if count > 1:
                    job.shards_left = count
                    shards = [replace(task, stage="shard", shard=(i, count)) for i in range(count)]
                    self.waiting.extendleft((job, shard) for shard in reversed(shards))
                    return None
            case "shard":
                job.shards_left -= 1
                if job.error and not job.shards_left:
                    return job
                if job.shards_left:
                    return None
        self.waiting.appendleft((job, replace(task, stage="job", shard=(0, 1))))
        return None

    def _end_early(self, job: FleetJob, task: Task) -> FleetJob | None:
        """Return a job that failed, once no other shard of it runs; those that wait are dropped."""
        if task.stage != "shard":
            return job
        dropped = [entry for entry in self.waiting if entry[0] is job]
        for entry in dropped:
            self.waiting.remove(entry)
        job.shards_left -= 1 + len(dropped)
        return None if job.shards_left else job

    def _stop_cancelled(self) -> None:
        """Stop the workers of jobs that a person has cancelled; Ray starts them again."""
        import ray

        if time.monotonic() - self.last_cancel_check < CANCEL_SECONDS:
            return
        self.last_cancel_check = time.monotonic()
        for worker in self.running:
            if worker.job and (worker.job.folder / "cancelled").exists():
                ray.kill(worker.actor, no_restart=False)

    def _check_can_start(self) -> None:
        if self.workers and all(worker.failure for worker in self.workers):
            raise UserError(f"no worker of the fleet can start: {self.workers[0].failure}")


def first_task(job: FleetJob) -> Task:
    """Return the first stage of a job: its erasure, where audits follow that several workers may share."""
    return Task(folder=job.folder, spec=job.spec, stage="erasure" if job.spec.suite and not job.spec.edits else "job")
