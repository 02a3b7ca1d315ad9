"""How long a job takes and how far it is, as one number: every phase counts by the seconds that it is expected to take."""

from dataclasses import dataclass, field

from app.jobs.execution import configure_job, plan_audits
from app.jobs.plan import JobSpec
from app.jobs.queue import JobProgress
from app.web.models import StudioModel
from erasure.concept import Concept
from erasure.erasing import forecast_erasure
from erasure.families.base import DiffusionModel
from erasure.methods.base import Method, Trained
from erasure.training.teacher_cache import query_cost

START_SECONDS = 8.0  # to import the libraries and to load a small model
BACKWARD = 2.0  # a backward pass takes about two forward passes
SAMPLING_STEPS = 25  # of an audit's images
IMAGE_SECONDS = 0.01  # to judge and to save an image, on top of its passes
PHASES = ("starting", "caching", "solving", "distilling", "erasing", "auditing")  # in the order in which they come


@dataclass(frozen=True)
class JobEstimate:
    """Seconds by phase; a phase that a job does not have takes none."""

    seconds: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def left(self, progress: JobProgress) -> float:
        """Return how many seconds a running job still takes: this phase at its own pace, and what comes after as expected."""
        place = PHASES.index(progress.phase) if progress.phase in PHASES else 0
        later = sum(self.seconds.get(phase, 0.0) for phase in PHASES[place + 1 :])
        expected = self.seconds.get(PHASES[place], 0.0)
        if progress.eta is not None and progress.seconds > 2:
            return later + progress.eta
        return later + max(expected - progress.seconds, 0.1 * expected)

    def share(self, progress: JobProgress) -> float:
        """Return how much of a running job is done, from 0 to 1."""
        left = self.left(progress)
        return min(0.99, max(0.0, 1 - left / max(self.total, left, 1e-6)))


def estimate_job(model: StudioModel, spec: JobSpec, pass_seconds: float) -> JobEstimate:
    """Estimate a job from the time of one network pass.

    Raises:
        UserError: The method does not serve the model, or the suite or a concept does not exist.
    """
    seconds = {"starting": START_SECONDS}
    if not spec.edits:
        method, concepts = configure_job(model.model, spec)
        seconds |= estimate_erasure(model.model, concepts, method, spec.seed, pass_seconds)
    images = sum(2 * len(plan.samples) for plan in plan_audits(model.model, spec))
    passes = images * SAMPLING_STEPS * model.model.forwards_per_step
    return JobEstimate(seconds | {"auditing": passes * pass_seconds + images * IMAGE_SECONDS})


def estimate_erasure(model: DiffusionModel, concepts: list[Concept], method: Method, seed: int, pass_seconds: float) -> dict[str, float]:
    """Return the seconds of an erasure by phase."""
    cost = forecast_erasure(model, concepts, method)
    if not isinstance(method, Trained):
        return {"solving": cost.unet_forwards * pass_seconds + 1}
    cached = query_cost(method.query(concepts, seed), model.forwards_per_step)
    rest = cost.unet_forwards - cached + BACKWARD * cost.unet_backwards
    return {"caching": cached * pass_seconds, "erasing": rest * pass_seconds + 1}


@dataclass
class ShownEstimates:
    """What the page has said about running jobs, so that the time left and the bar never go back."""

    made: dict[str, JobEstimate | None] = field(default_factory=dict)  # by job; None where there can be none
    left: dict[str, float] = field(default_factory=dict)
    share: dict[str, float] = field(default_factory=dict)

    def update(self, name: str, left: float, share: float) -> tuple[float, float]:
        """Return the seconds left and the share of a job to show."""
        self.left[name] = min(left, self.left.get(name, left))
        self.share[name] = max(share, self.share.get(name, share))
        return self.left[name], self.share[name]

    def forget(self, name: str) -> None:
        """A job has stopped; when it is continued, it is estimated anew."""
        self.made.pop(name, None)
        self.left.pop(name, None)
        self.share.pop(name, None)
