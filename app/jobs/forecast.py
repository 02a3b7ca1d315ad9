"""What the jobs of a plan would cost, recordings that several ask for counted once."""

from dataclasses import dataclass

from app.jobs.execution import planned, prepared
from app.jobs.plan import Plan
from erasure.erasing import forecast
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.methods.base import Trained
from erasure.training.recording import bank_key
from erasure.training.teacher_cache import recording_cost


@dataclass(frozen=True)
class Forecast:
    """Network passes per sample of one job."""

    forwards: int  # of the erasure, without its recording where a job above it makes that
    backwards: int
    recording: str  # which recording it trains from; none for methods that need none
    pictures: int  # that its audit draws of the erased model, at most


def forecasts(plan: Plan) -> list[Forecast]:
    """One for every job, in the order of the plan.

    Raises:
        UserError: a method, field, suite or concept that does not exist.
    """
    models: dict[str, DiffusionModel] = {}
    made: set[str] = set()
    found = []
    for spec in plan.jobs:
        if spec.model not in models:
            models[spec.model] = load_model(spec.model)
        model = models[spec.model]
        method, concepts = prepared(model, spec)
        cost, key = forecast(model, concepts, method), ""
        forwards = cost.unet_forwards
        if isinstance(method, Trained):
            recording = method.record(concepts, spec.seed)
            key = bank_key(model, recording)
            forwards -= recording_cost(recording) if key in made else 0
            made.add(key)
        pictures = 0
        for audit in planned(model, spec):
            pictures += sum(case.count for case in audit.asked(spec.tier))
            if spec.tier in (attacks := audit.suite.attacks).tiers:
                pictures += attacks.prompts * (attacks.pictures + attacks.fresh) * len(attacks.use)
        found.append(Forecast(forwards, cost.unet_backwards, key, pictures))
    return found
