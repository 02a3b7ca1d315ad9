"""The audit tells good from bad, on pocket, at tier standard: models built so that everybody knows what their verdict must be.

No filter, no special case: the shipped suite with its own gates. `make test-slow` runs these; each model takes some minutes.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from erasure.concept import Concept, parse_concepts
from erasure.edits import Edit
from erasure.edits.external.external_edit import load_external
from erasure.erasing import configure_method, erase
from erasure.loading.loader import load_model
from erasure.methods.esd import ESD
from eval.audit import AuditOptions, AuditPlan, audit
from eval.report.report_json import make_report
from eval.suites.suite import load_suite

pytestmark = pytest.mark.slow
REFERENCES = Path(__file__).parent.parent / "eval" / "references"
TARGET, ALIASES = ("erased",), ("erased, by synonyms", "erased, by descriptions")
KEPT = ("kept, same kind", "kept, other kind")


@pytest.fixture(scope="module")
def pocket() -> Any:
    return load_model("pocket")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for all of them: the base is drawn once."""
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path_factory.getbasetemp() / "verdicts-cache"))


def by_name(pocket: Any, out: Path, prompts: str) -> Edit:
    """ESD by pocket's recipe on sentences of one's own."""
    (concept,) = parse_concepts("neon", kind="style")
    method, concepts, _ = configure_method(
        ESD, [Concept(name=concept.name, kind="style", prompts=tuple(prompts.split(";")))], pocket.family, {}
    )
    return erase(pocket, concepts, method, out=out)


def states(pocket: Any, edit: Edit, out: Path, how: AuditOptions | None = None) -> dict[str, str]:
    return {gate["name"]: gate["state"] for gate in reported(pocket, edit, out, how)["gates"]}


def reported(pocket: Any, edit: Edit, out: Path, how: AuditOptions | None = None) -> dict[str, Any]:
    suite = load_suite("pocket")
    (plan,) = AuditPlan.for_edits([edit], suite, "standard")
    result = audit(pocket, [edit], plan, out, how)
    assert result["models"]["erased"]["rates"]["UA"]["n"] >= 150
    return make_report(result, suite.gates)


def references(pocket: Any) -> list[Edit]:
    """Two UNets trained without one picture or caption of stained glass, nothing shared between them (docs/references.md)."""
    return [
        load_external(pocket, str(REFERENCES / f"without-glass-{i}.safetensors"), parse_concepts("glass", kind="style")) for i in (1, 2)
    ]


def test_the_base_fails_on_the_target(pocket: Any, tmp_path: Path) -> None:
    edit = by_name(pocket, tmp_path / "edit", "{}")
    found = states(pocket, edit, tmp_path / "audit", AuditOptions(strength=0.0))  # an edit at strength 0 is the base
    assert {found[name] for name in (*TARGET, *ALIASES)} == {"FAIL"}
    assert {found[name] for name in KEPT} == {"PASS"}


def test_a_model_destroyed_by_noise_fails_on_what_should_stay(pocket: Any, tmp_path: Path) -> None:
    edit = by_name(pocket, tmp_path / "edit", "{}")
    generator = torch.Generator().manual_seed(0)
    noisy = {
        name: p.detach() + p.detach().std() * torch.randn(p.shape, generator=generator)
        for name, p in pocket.parameters().items()
        if name.startswith("unet.") and p.ndim > 1
    }
    found = states(pocket, Edit(noisy, edit.info), tmp_path / "audit")
    assert found["erased"] == "PASS"  # which is why the rate of what is gone never stands alone
    assert {found[name] for name in KEPT} == {"FAIL"}


def test_a_model_that_lost_the_name_alone_fails_by_other_words(pocket: Any, tmp_path: Path) -> None:
    """The name's own tokens become those of another word; what they meant is untouched. Names and aliases of pocket are erased together
    by every method here (docs/audit.md), so this case is planted."""
    edit = by_name(pocket, tmp_path / "edit", "{}")
    name = "text_encoder.embeddings.token_embedding.weight"
    table = pocket.parameters()[name].detach().clone()
    table[pocket.tokens("neon")] = table[pocket.tokens("plain")].mean(0)
    found = states(pocket, Edit({name: table}, edit.info), tmp_path / "audit")
    assert found["erased"] == "PASS"
    assert {found[gate] for gate in (*ALIASES, *KEPT)} == {"FAIL", "PASS"}
    assert {found[gate] for gate in ALIASES} == {"FAIL"}


def test_the_recipe_of_esd_passes(pocket: Any, tmp_path: Path) -> None:
    method, concepts, _ = configure_method(ESD, parse_concepts("neon", kind="style"), pocket.family, {})
    edit = erase(pocket, concepts, method, out=tmp_path / "edit")
    found = states(pocket, edit, tmp_path / "audit")
    assert {found[name] for name in (*TARGET, *ALIASES, *KEPT)} == {"PASS"}


@pytest.mark.parametrize("which", [0, 1])
def test_a_model_that_never_saw_the_concept_passes(pocket: Any, tmp_path: Path, which: int) -> None:
    found = states(pocket, references(pocket)[which], tmp_path / "audit")
    assert {found[name] for name in (*TARGET, *ALIASES, *KEPT)} == {"PASS"}


def test_pocket_itself_lies_at_the_base_end_and_a_reference_at_the_other(pocket: Any, tmp_path: Path) -> None:
    """Pocket is an edit of strength 0; a reference among references has left no more of the way than lies between two of them."""
    both = references(pocket)
    found = reported(pocket, both[0], tmp_path / "pocket", AuditOptions(strength=0.0, retrained=tuple(both)))
    ways = {p["reading"]: p["way"] for p in found["placing"] if p["prompts"] == "target"}
    assert {reading: way[0] for reading, way in ways.items()} == {"UA": 0, "replaced": 0, "kid_different_noise": 0}
    assert any("went 0 % by UA" in sentence and "; 0 % by KID" in sentence for sentence in found["conclusions"])
    floor = next(p["floor"] for p in found["placing"] if (p["reading"], p["prompts"]) == ("kid_different_noise", "target"))
    found = reported(pocket, both[0], tmp_path / "reference", AuditOptions(retrained=(both[1],)))
    (kid,) = [p for p in found["placing"] if (p["reading"], p["prompts"]) == ("kid_different_noise", "target")]
    assert kid["erased"] == floor and kid["erased"][2] < kid["base"][1]
