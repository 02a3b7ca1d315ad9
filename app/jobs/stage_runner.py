"""What a worker of a fleet does with a stage of a job. Imported in the worker, since it imports torch."""

from app.jobs.audit_outcomes import load_outcomes, summarize_verdicts
from app.jobs.execution import Runner, run_audit_shard, run_erasure, run_job
from app.jobs.fleet_tasks import Task
from app.jobs.queue import FLEET_COMMAND
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model


class StageRunner:
    """Runs stages of jobs with one warm model: the one that the last stage used."""

    def __init__(self) -> None:
        self._loaded: dict[str, DiffusionModel] = {}  # at most one, by source
        self._runner = Runner(self._load, FLEET_COMMAND, uses_all_cores=False)

    def run_stage(self, task: Task) -> None:
        """Run a stage in its job's folder. Raises as `app.jobs.execution.run_job`."""
        try:
            match task.stage:
                case "erasure":
                    run_erasure(task.folder, task.spec, self._runner)
                case "shard":
                    run_audit_shard(task.folder, task.spec, task.shard, self._runner)
                case "job":
                    run_job(task.folder, task.spec, self._runner, task.seconds_before)
                    print(f"{task.folder}: done; {summarize_verdicts(load_outcomes(task.folder))}")
        except BaseException:
            self._loaded.clear()  # what failed may have left the model changed
            raise

    def _load(self, source: str) -> DiffusionModel:
        if source not in self._loaded:
            self._loaded.clear()  # before the next one takes its memory
            self._loaded[source] = load_model(source)
        return self._loaded[source]
