"""Forecast the cost of the jobs of a plan. A teacher cache that several jobs share is counted once."""

from dataclasses import dataclass

from app.jobs.execution import configure_job, plan_audits
from app.jobs.plan import Plan
from erasure.erasing import forecast_erasure
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.methods.base import Trained
from erasure.training.fill_cache import teacher_cache_key
from erasure.training.teacher_cache import query_cost


@dataclass(frozen=True)
class JobForecast:
    """Network passes per sample of one job."""

    forwards: int  # of the erasure, without its teacher cache where an earlier job fills it
    backwards: int
    cache_key: str  # of the teacher cache that it trains from; empty for methods without one
    images: int  # that its audit generates with the erased model, at most


def forecast_jobs(plan: Plan) -> list[JobForecast]:
    """Forecast every job, in the order of the plan.

    Raises:
        UserError: A method, field, suite or concept does not exist.
    """
    models: dict[str, DiffusionModel] = {}
    cached_keys: set[str] = set()
    results = []
    for spec in plan.jobs:
        if spec.model not in models:
            models[spec.model] = load_model(spec.model)
        model = models[spec.model]
        method, concepts = configure_job(model, spec)
        cost, cache_key = forecast_erasure(model, concepts, method), ""
        forwards = cost.unet_forwards
        if isinstance(method, Trained):
            query = method.query(concepts, spec.seed)
            cache_key = teacher_cache_key(model, query)
            forwards -= query_cost(query, model.forwards_per_step) if cache_key in cached_keys else 0
            cached_keys.add(cache_key)
        image_count = 0
        for audit_plan in plan_audits(model, spec):
            image_count += sum(case.count for case in audit_plan.tier_cases(spec.tier))
            if spec.tier in (attacks := audit_plan.suite.attacks).tiers:
                image_count += attacks.prompts * (attacks.images + attacks.fresh_images) * len(attacks.use)
        results.append(JobForecast(forwards, cost.unet_backwards, cache_key, image_count))
    return results
