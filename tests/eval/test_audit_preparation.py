"""An audit is prepared once: what it computes, and how often."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from erasure.concept import Concept
from erasure.edits import Edit
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from eval import audit, prepare_audit
from eval.auditing import plan, prepare
from eval.records.models import BASE, ERASED
from eval.scoring import judge_scores
from tests.factories import ATTACKS, attack_plan, erase_on_small_latents, small_suite, write_one_step_suite

COUNTED: list[tuple[Any, str]] = [
    *((plan, name) for name in ("suite_cases", "samples_of", "build_judges", "build_attacks", "make_extractor")),
    *((prepare, name) for name in ("available_judges", "build_attacks", "make_extractor", "plan_attack_run", "job_record")),
    *((judge_scores, "build_judges"), (StableDiffusion, "fingerprint")),
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the functions of COUNTED were called, in whatever module."""
    counts = Counter[str]()

    def count(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        return counted

    for owner, name in COUNTED:
        monkeypatch.setattr(owner, name, count(name, getattr(owner, name)))
    return counts


def test_a_smoke_audit_computes_everything_once(
    pocket_sized_model: StableDiffusion, neon_edit: Edit, tmp_path: Path, calls: Counter[str]
) -> None:
    """Cases once for each of the three tiers, whose sample sizes the result names; everything else once."""
    audit(pocket_sized_model, neon_edit, write_one_step_suite(tmp_path), "smoke", out=tmp_path / "audit")
    once = ("samples_of", "available_judges", "build_judges", "build_attacks", "make_extractor", "plan_attack_run", "job_record")
    assert calls == {"suite_cases": 3, "fingerprint": 1, **dict.fromkeys(once, 1)}


def test_an_audit_with_attacks_asks_for_the_fingerprint_only_for_the_teacher_cache(
    pocket_sized_model: StableDiffusion, neon_edit: Edit, tmp_path: Path, calls: Counter[str]
) -> None:
    suite = attack_plan(neon_edit, ATTACKS).suite
    calls.clear()
    request = prepare_audit(pocket_sized_model, neon_edit, suite, "smoke", out=tmp_path / "audit")
    assert calls["fingerprint"] == calls["build_judges"] == calls["build_attacks"] == 1
    prepared_calls = Counter({name: n for name, n in calls.items() if name not in ("suite_cases", "fingerprint")})
    request.run()
    assert Counter({name: n for name, n in calls.items() if name not in ("suite_cases", "fingerprint")}) == prepared_calls
    assert calls["suite_cases"] == 3


def test_two_axes_share_judges_attacks_and_fingerprint(pocket_sized_model: StableDiffusion, tmp_path: Path, calls: Counter[str]) -> None:
    edit = erase_on_small_latents(pocket_sized_model, [Concept(name="neon"), Concept(name="boat", kind="object")], tmp_path / "edit")
    calls.clear()
    request = prepare_audit(pocket_sized_model, edit, small_suite(), "smoke", out=tmp_path / "audit")
    styles, objects = request.audits
    assert styles.judges is objects.judges and styles.extractor is objects.extractor
    assert (calls["fingerprint"], calls["build_judges"], calls["build_attacks"]) == (1, 1, 1)
    assert (calls["suite_cases"], calls["job_record"]) == (2, 2)  # the tier's cases and the job of each axis


def test_preparing_generates_and_writes_nothing(pocket_sized_model: StableDiffusion, neon_edit: Edit, tmp_path: Path) -> None:
    forwards = pocket_sized_model.cost.unet_forwards
    (prepared,) = prepare_audit(pocket_sized_model, neon_edit, small_suite(), "smoke", out=tmp_path / "audit").audits
    assert pocket_sized_model.cost.unet_forwards == forwards and not (tmp_path / "audit").exists()
    assert prepared.attack_run is None and set(prepared.judges) == {"style", "object", "clip"} and not prepared.missing
    assert [(stack.model, len(stack.edits)) for stack in prepared.stacks] == [(BASE, 0), (ERASED, 1)]
    assert prepared.stacks[0].weights_digest == pocket_sized_model.fingerprint() == prepared.job.base


def test_a_folder_of_something_else_is_refused_before_anything_is_generated(
    pocket_sized_model: StableDiffusion, neon_edit: Edit, tmp_path: Path
) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        prepare_audit(pocket_sized_model, neon_edit, small_suite(), "smoke", out=tmp_path / "audit")
