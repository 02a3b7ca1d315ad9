"""Verdicts on pocket, in tier standard, for models whose verdict is known beforehand.

The shipped suite with its own gates, without any filter. `make test-slow` runs these tests; each model takes some minutes.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from erasure.concept import Concept, parse_concepts
from erasure.edits import Edit
from erasure.edits.external.external_edit import load_external
from erasure.erasing import erase
from erasure.loading.loader import load_model
from erasure.methods.esd import ESD
from erasure.recipes import configure_method
from eval.auditing.plan import AuditPlan
from eval.auditing.prepare import AuditOptions
from eval.auditing.run import audit_plan
from eval.records.models import ERASED
from eval.records.rates import RateName
from eval.records.report import Report
from eval.report.report_json import make_report
from eval.suites.suite import load_suite

pytestmark = pytest.mark.slow
WEIGHTS_FOLDER = Path(__file__).parents[2] / "eval" / "retrained" / "weights"
TARGET, ALIASES = ("erased",), ("erased, by synonyms", "erased, by descriptions")
RETAINED = ("retained, same kind", "retained, other kind")


@pytest.fixture(scope="module")
def pocket() -> Any:
    return load_model("pocket")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for all tests: the base's images are generated once."""
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path_factory.getbasetemp() / "verdicts-cache"))


def train_esd(pocket: Any, out: Path, prompts: str) -> Edit:
    """ESD by pocket's recipe with other training prompts."""
    (concept,) = parse_concepts("neon", kind="style")
    method, concepts, _ = configure_method(
        ESD, [Concept(name=concept.name, kind="style", prompts=tuple(prompts.split(";")))], pocket.family, {}
    )
    return erase(pocket, concepts, method, out=out)


def gate_states(pocket: Any, edit: Edit, out: Path, options: AuditOptions | None = None) -> dict[str, str]:
    return {gate.name: gate.state for gate in audit_and_report(pocket, edit, out, options).gates}


def audit_and_report(pocket: Any, edit: Edit, out: Path, options: AuditOptions | None = None) -> Report:
    suite = load_suite("pocket")
    (plan,) = AuditPlan.for_edits([edit], suite, "standard")
    result = audit_plan(pocket, [edit], plan, out, options)
    assert result.models[ERASED].rates[RateName.UA].n >= 150
    return make_report(result, suite.gates)


def load_retrained_models(pocket: Any) -> list[Edit]:
    """Two UNets trained without any image or caption of stained glass, nothing shared between them (docs/results/retrained.md)."""
    return [
        load_external(pocket, str(WEIGHTS_FOLDER / f"without-glass-{i}.safetensors"), parse_concepts("glass", kind="style")) for i in (1, 2)
    ]


def test_the_base_fails_on_the_target(pocket: Any, tmp_path: Path) -> None:
    edit = train_esd(pocket, tmp_path / "edit", "{}")
    states = gate_states(pocket, edit, tmp_path / "audit", AuditOptions(strength=0.0))  # an edit at strength 0 is the base
    assert {states[name] for name in (*TARGET, *ALIASES)} == {"FAIL"}
    assert {states[name] for name in RETAINED} == {"PASS"}


def test_a_model_destroyed_by_noise_fails_on_what_must_be_retained(pocket: Any, tmp_path: Path) -> None:
    edit = train_esd(pocket, tmp_path / "edit", "{}")
    generator = torch.Generator().manual_seed(0)
    noisy = {
        name: p.detach() + p.detach().std() * torch.randn(p.shape, generator=generator)
        for name, p in pocket.parameters().items()
        if name.startswith("unet.") and p.ndim > 1
    }
    states = gate_states(pocket, Edit(noisy, edit.info), tmp_path / "audit")
    assert states["erased"] == "PASS"  # which is why UA never stands alone
    assert {states[name] for name in RETAINED} == {"FAIL"}


def test_a_model_that_lost_only_the_name_fails_on_other_words(pocket: Any, tmp_path: Path) -> None:
    """The embeddings of the name's tokens become those of another word; the concept itself is untouched.

    Every method here erases pocket's names and aliases together (docs/results/attacks.md), so this case is planted.
    """
    edit = train_esd(pocket, tmp_path / "edit", "{}")
    name = "text_encoder.embeddings.token_embedding.weight"
    table = pocket.parameters()[name].detach().clone()
    table[pocket.tokenize("neon")] = table[pocket.tokenize("plain")].mean(0)
    states = gate_states(pocket, Edit({name: table}, edit.info), tmp_path / "audit")
    assert states["erased"] == "PASS"
    assert {states[gate] for gate in (*ALIASES, *RETAINED)} == {"FAIL", "PASS"}
    assert {states[gate] for gate in ALIASES} == {"FAIL"}


def test_the_recipe_of_esd_passes(pocket: Any, tmp_path: Path) -> None:
    method, concepts, _ = configure_method(ESD, parse_concepts("neon", kind="style"), pocket.family, {})
    edit = erase(pocket, concepts, method, out=tmp_path / "edit")
    states = gate_states(pocket, edit, tmp_path / "audit")
    assert {states[name] for name in (*TARGET, *ALIASES, *RETAINED)} == {"PASS"}


@pytest.mark.parametrize("number", [0, 1])
def test_a_retrained_model_passes(pocket: Any, tmp_path: Path, number: int) -> None:
    states = gate_states(pocket, load_retrained_models(pocket)[number], tmp_path / "audit")
    assert {states[name] for name in (*TARGET, *ALIASES, *RETAINED)} == {"PASS"}


def test_the_base_closes_none_of_the_retrain_gap_and_a_retrained_model_all_of_it(pocket: Any, tmp_path: Path) -> None:
    """Pocket is an edit of strength 0; one retrained model is no further from the other than two retrained models are."""
    both = load_retrained_models(pocket)
    report = audit_and_report(pocket, both[0], tmp_path / "pocket", AuditOptions(strength=0.0, retrained=tuple(both)))
    gaps_closed = {gap.measure: gap.gap_closed and gap.gap_closed.estimate for gap in report.retrain_gap if gap.prompts == "target"}
    assert gaps_closed == {"UA": 0, "replacement_labels": 0, "kid_different_noise": 0}
    assert any("closed 0% by UA" in line and "; 0% by KID" in line for line in report.conclusions)
    kid_of_target = ("kid_different_noise", "target")
    between = next(gap.between_retrained for gap in report.retrain_gap if (gap.measure, gap.prompts) == kid_of_target)
    report = audit_and_report(pocket, both[0], tmp_path / "retrained", AuditOptions(retrained=(both[1],)))
    (kid,) = [gap for gap in report.retrain_gap if (gap.measure, gap.prompts) == kid_of_target]
    assert kid.erased and kid.base and kid.erased == between and kid.erased.high < kid.base.low
