"""How long a job takes, as the page says it: phases add up, and what was said never goes back."""

from dataclasses import replace

import pytest

from app.jobs.plan import JobSpec
from app.jobs.queue import JobProgress
from app.web.job_estimate import JobEstimate, ShownEstimates, estimate_job
from app.web.job_view import format_seconds
from app.web.messages import for_page
from app.web.models import StudioModel
from erasure.concept import Concept
from erasure.families.stable_diffusion import StableDiffusion

ESTIMATE = JobEstimate({"starting": 10.0, "caching": 20.0, "erasing": 30.0, "auditing": 40.0})


def test_a_running_phase_counts_at_its_own_pace_and_later_ones_as_expected() -> None:
    half = JobProgress("running", "erasing", done=50, total=100, seconds=25.0)
    assert ESTIMATE.left(half) == 25.0 + 40.0
    assert ESTIMATE.share(half) == pytest.approx(0.35)
    assert ESTIMATE.left(JobProgress("running", "starting", seconds=4.0)) == 6.0 + 90.0
    late = JobProgress("running", "caching", seconds=500.0)  # it takes longer than expected and counts nothing
    assert 70.0 < ESTIMATE.left(late) <= 72.0 and ESTIMATE.share(late) < 1


def test_what_was_said_never_goes_back() -> None:
    shown = ShownEstimates()
    assert shown.update("job", 100.0, 0.2) == (100.0, 0.2)
    assert shown.update("job", 140.0, 0.1) == (100.0, 0.2)
    assert shown.update("job", 60.0, 0.5) == (60.0, 0.5)
    shown.forget("job")
    assert shown.update("job", 140.0, 0.1) == (140.0, 0.1)


def test_an_estimate_follows_what_a_job_asks_for(model: StableDiffusion) -> None:
    loaded = StudioModel(model, "")
    spec = JobSpec(concepts=(Concept(name="neon", kind="style"),), method="esd", model="tiny", fields={"steps": 100})
    short, long = (estimate_job(loaded, replace(spec, fields={"steps": steps}), 0.01) for steps in (100, 200))
    assert short.seconds["caching"] == long.seconds["caching"] > 0
    assert long.seconds["erasing"] - 1 == pytest.approx(2 * (short.seconds["erasing"] - 1), rel=0.2)
    assert short.seconds["auditing"] == 0
    twice = estimate_job(loaded, spec, 0.02)
    assert twice.seconds["caching"] == pytest.approx(2 * short.seconds["caching"])


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "10 seconds"), (44, "40 seconds"), (100, "2 minutes"), (3000, "50 minutes"), (9000, "2.5 hours")]
)
def test_durations_as_one_would_say_them(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            "the loss is NaN; lower --lr, or compute with --dtype fp32.",
            "The loss is NaN; lower the learning rate, or compute with “dtype” fp32.",
        ),
        ("esd-neon-1 is running; cancel it first.", "esd-neon-1 is running; cancel it first."),
        ("<b> needs --images-at-once 1.", "<b> needs “images at once” 1."),
    ],
)
def test_messages_for_the_page_name_no_flags(message: str, text: str) -> None:
    assert for_page(message) == text and "--" not in for_page(message)
