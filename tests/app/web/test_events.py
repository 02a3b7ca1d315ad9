"""The page's events: none can fire itself again and again."""

from collections import Counter
from pathlib import Path

from app.web.models import StudioModels
from app.web.page import build_page
from app.web.studio import Studio
from erasure.families.stable_diffusion import StableDiffusion


def test_no_event_has_two_listeners_that_defer_each_other(model: StableDiffusion, tmp_path: Path) -> None:
    """At the end of a deferred listener gradio's page fires the whole event again: with two of them it never ends."""
    dependencies = build_page(Studio(StudioModels.of(model), tmp_path / "runs")).config["dependencies"]
    deferring = Counter(
        tuple(target) for listener in dependencies if listener["trigger_mode"] == "always_last" for target in listener["targets"]
    )
    assert deferring, "the config says how listeners are triggered"
    assert [event for event, count in deferring.items() if count > 1] == []
    assert {listener["trigger_mode"] for listener in dependencies if any(event == "tick" for _, event in listener["targets"])} == {"once"}
