"""The library as a notebook uses it: `from eval import audit, ...`, on tiny models and on pocket with small fields."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml

import erasure
import eval as library
from erasure.concept import Concept
from erasure.edits import Edit
from erasure.edits.stacking import stack_of
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from eval import GridSuite, audit, compare, load_audit, load_suite, prepare_audit, rewrite_report
from eval.records.models import BASE, ERASED, retrained_model
from eval.records.rates import RateName
from eval.suites.formats import JudgeSpec
from tests import tiny
from tests.factories import erase_on_small_latents, small_suite, write_one_step_suite

SMALL_ESD: dict[str, Any] = {"steps": 2, "batch": 2, "trajectories": 12, "trajectory_steps": 2}
PASSED_BY_ALL = {"any": {"rate": "UA", "at_least": 1e-6}}  # a gate that all pass that erase anything


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    return write_one_step_suite(tmp_path / "suite")


@pytest.fixture(scope="module")
def pocket() -> Iterator[erasure.DiffusionModel]:
    model = erasure.load_model("pocket", device="cpu", dtype="fp32")
    before = model.fingerprint()
    yield model
    assert model.fingerprint() == before and not stack_of(model.pipe).edits


def test_importing_the_library_imports_no_torch_until_a_name_needs_it() -> None:
    code = "import sys, eval; eval.load_suite('pocket'); print('torch' in sys.modules); eval.audit; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False", "True"]


def test_every_public_name_is_there_and_no_submodule_hides_one() -> None:
    submodules = {path.stem for path in Path("eval").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert not submodules & set(library.__all__)
    assert set(library.__all__) <= set(dir(library)) and sorted(library.__all__) == library.__all__
    for name in library.__all__:
        assert getattr(library, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'audits'"):
        _ = library.audits  # type: ignore[attr-defined]


def test_audit_takes_what_prepare_audit_takes() -> None:
    first, second = (signature(function).parameters for function in (audit, prepare_audit))
    assert first == second


def test_six_lines_of_a_notebook(pocket: erasure.DiffusionModel, suite_file: Path, tmp_path: Path) -> None:
    edit = erasure.erase(pocket, "neon", method="esd", out=tmp_path / "neon", **SMALL_ESD)
    result = audit(pocket, edit, suite=suite_file, tier="smoke", out=tmp_path / "audit")
    assert result.verdict in ("FAIL", "INCONCLUSIVE")  # two images of the target decide nothing, unless they fail
    assert result.result.axis == "style" and result.result.targets == ("neon",)
    assert result.result.models[ERASED].rates[RateName.UA].n == 2
    assert result.reports == (tmp_path / "audit" / "report.html",) and result.reports[0].is_file()
    with pytest.raises(FrozenInstanceError):
        result.verdict = "PASS"  # type: ignore[misc]


def test_strings_are_accepted_where_the_command_line_accepts_them(
    pocket_sized_model: StableDiffusion, suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths of edits, suites by name, by name with a concept and by file, a list to replay; the folder is below the edit."""
    edit = erase_on_small_latents(pocket_sized_model, [Concept(name="neon", kind="style")], tmp_path / "edit")
    (tmp_path / "list.txt").write_text("glowing tubes\n" + "x" * 5001 + "\n")
    by_path = prepare_audit(pocket_sized_model, str(tmp_path / "edit"), str(suite_file), "smoke", replay=str(tmp_path / "list.txt"))
    (prepared,) = by_path.audits
    assert prepared.edits[0].digest() == edit.digest() and prepared.plan.suite.file == "suite.yaml"
    assert prepared.out == tmp_path / "edit" / "audit-pocket-smoke-replay-list" and not prepared.out.exists()
    assert [case.prompt for case in prepared.plan.cases if case.role == "replayed"] == ["glowing tubes"]
    assert by_path.warnings == ["Of the 2 rows of list.txt, these were left out: 1 of more than 5,000 letters."]
    for name in ("pocket", "pocket/neon"):
        (prepared,) = prepare_audit(pocket_sized_model, edit, name, "smoke", edit_paths=[tmp_path / "edit"], strength=0.5).audits
        assert prepared.plan.suite == load_suite("pocket") and prepared.out.name == "audit-pocket-smoke-strength-0.5"
        assert prepared.job.strength == 0.5
    monkeypatch.chdir(tmp_path)
    (prepared,) = prepare_audit(pocket_sized_model, edit, suite_file, "smoke").audits  # an edit in memory has no folder
    assert prepared.out.parent == Path("runs") and len(prepared.out.name) == 16
    with pytest.raises(UserError, match="selects sketch alone, but the edits erase neon"):
        prepare_audit(pocket_sized_model, edit, "pocket/sketch", "smoke")
    with pytest.raises(UserError, match=r"no edit at .*none: edit.safetensors and edit.json are missing"):
        prepare_audit(pocket_sized_model, tmp_path / "none", suite_file)
    with pytest.raises(UserError, match=r"unknown tier 'smoky'\. Did you mean 'smoke'"):
        prepare_audit(pocket_sized_model, edit, suite_file, "smoky")
    with pytest.raises(UserError, match=r"unknown keep_images 'nome'\. Did you mean 'none'"):
        prepare_audit(pocket_sized_model, edit, suite_file, "smoke", keep_images="nome")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="needs the folder of an edit"):
        prepare_audit(pocket_sized_model, [], suite_file)


def test_edits_of_both_axes_have_two_results_and_the_worst_verdict(
    pocket_sized_model: StableDiffusion, suite_file: Path, tmp_path: Path
) -> None:
    edit = erase_on_small_latents(pocket_sized_model, [Concept(name="neon"), Concept(name="boat", kind="object")], tmp_path / "edit")
    both = audit(pocket_sized_model, edit, suite_file, "smoke", out=tmp_path / "audit")
    assert [result.axis for result in both.results] == ["style", "object"]
    assert both.reports == tuple(tmp_path / "audit" / axis / "report.html" for axis in ("style", "object"))
    with pytest.raises(UserError, match="has 2 results, for styles and objects; read `results`"):
        _ = both.result
    loaded, alone = load_audit(tmp_path / "audit"), [load_audit(tmp_path / "audit" / axis) for axis in ("style", "object")]
    assert (loaded.verdict, loaded.reports) == (both.verdict, both.reports)
    assert [audited.result.targets for audited in alone] == [result.targets for result in loaded.results] == [("neon",), ("boat",)]
    by_path = prepare_audit(pocket_sized_model, tmp_path / "edit", suite_file, "smoke")
    assert [prepared.out.name for prepared in by_path.audits] == ["audit-pocket-smoke-style", "audit-pocket-smoke-object"]
    (boat,) = prepare_audit(pocket_sized_model, edit, suite_file, "smoke", target="a boat").audits
    assert boat.plan.targets == ("boat",)


def test_verdicts_follow_the_gates_and_a_missing_judge_is_incomplete(
    pocket_sized_model: StableDiffusion, neon_edit: Edit, tmp_path: Path
) -> None:
    easy = write_one_step_suite(tmp_path / "easy", gates=PASSED_BY_ALL)
    passed = audit(pocket_sized_model, neon_edit, easy, "smoke", out=tmp_path / "audit")
    hard = write_one_step_suite(tmp_path / "hard", gates={"all": {"rate": "UA_replayed", "at_least": 0.5}})
    assert rewrite_report(tmp_path / "audit", hard).verdict == "INCONCLUSIVE"  # nothing was replayed
    assert load_audit(str(tmp_path / "audit")).verdict == passed.verdict == rewrite_report(tmp_path / "audit").verdict
    assert passed.verdict == ("PASS" if passed.result.models[ERASED].rates[RateName.UA].k else "FAIL")
    suite = small_suite()
    blind = replace(suite, judges={**suite.judges, "style": JudgeSpec("imagenet", {"weights": "nowhere.pth"})})
    incomplete = audit(pocket_sized_model, neon_edit, blind, "smoke", out=tmp_path / "blind")
    assert incomplete.verdict == "INCOMPLETE" and "style" in incomplete.result.missing


def test_shards_and_then_a_run_equal_a_straight_run(
    pocket_sized_model: StableDiffusion, neon_edit: Edit, suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit(pocket_sized_model, neon_edit, suite_file, "smoke", out=tmp_path / "straight")
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "second"))
    request = prepare_audit(pocket_sized_model, neon_edit, suite_file, "smoke", out=tmp_path / "shared", fresh=True).begin()
    for i in range(2):
        request.generate((i, 2))
    forwards = pocket_sized_model.cost.unet_forwards
    request.run()
    assert pocket_sized_model.cost.unet_forwards == forwards
    assert (tmp_path / "shared" / "result.json").read_bytes() == (tmp_path / "straight" / "result.json").read_bytes()
    assert compare(tmp_path / "straight", str(tmp_path / "shared")).splitlines()[2].startswith("| UA | ")


def test_a_finished_audit_that_keeps_no_images_makes_none_again_in_shards(
    pocket_sized_model: StableDiffusion, neon_edit: Edit, suite_file: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"keep_images": "none", "out": tmp_path / "audit"}
    shared = prepare_audit(pocket_sized_model, neon_edit, suite_file, "smoke", **options).begin()
    for i in range(2):
        shared.generate((i, 2))
        assert [*(tmp_path / "audit").rglob("*.png")]  # until they are judged
    shared.run()
    result, forwards = (tmp_path / "audit" / "result.json").read_bytes(), pocket_sized_model.cost.unet_forwards
    assert not [*(tmp_path / "audit").rglob("*.png")]
    again = prepare_audit(pocket_sized_model, neon_edit, suite_file, "smoke", **options).begin()
    again.generate((0, 2))
    again.run()
    assert pocket_sized_model.cost.unet_forwards == forwards and not [*(tmp_path / "audit").rglob("*.png")]
    assert (tmp_path / "audit" / "result.json").read_bytes() == result


def test_every_image_is_made_by_one_of_the_shards(
    pocket_sized_model: StableDiffusion, neon_edit: Edit, suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches of a model after the first begin with another shard, so that none gets every odd one."""
    monkeypatch.setattr("eval.generation.MAX_BATCH_IMAGES", 2)
    shared = prepare_audit(pocket_sized_model, neon_edit, suite_file, "smoke", out=tmp_path / "audit").begin()
    (prepared,) = shared.audits
    made: dict[str, list[set[str]]] = {"base": [], "erased": []}
    for i in range(3):
        shared.generate((i, 3))
        for name, sets in made.items():
            seen = {path.name for path in (tmp_path / "audit" / "images" / name).glob("*.png")}
            sets.append(seen - set().union(*sets))
    names = {sample.file_name for sample in prepared.plan.samples}
    assert all(set().union(*sets) == names for sets in made.values())
    assert made["erased"][0] == made["base"][1] and made["erased"][2] == made["base"][0]


def test_an_erasure_made_elsewhere_needs_a_concept(pocket_sized_model: StableDiffusion, suite_file: Path, tmp_path: Path) -> None:
    pipe = tiny.pipeline(size=16, levels=3)
    pipe.unet.conv_out.bias.data += 0.5
    pipe.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="was not made by `erasure erase`; to audit it give --concept as well"):
        prepare_audit(pocket_sized_model, tmp_path / "model", suite_file, "smoke", out=tmp_path / "audit")
    choices: tuple[dict[str, Any], ...] = ({"concept": "neon"}, {"target": "neon"})
    for choice in choices:
        (prepared,) = prepare_audit(pocket_sized_model, tmp_path / "model", suite_file, "smoke", out=tmp_path / "audit", **choice).audits
        assert prepared.edits[0].info.method == "external" and prepared.plan.targets == ("neon",)
    with pytest.raises(UserError, match="is not in the local cache"):
        prepare_audit(pocket_sized_model, "somebody/erased-neon", suite_file, concept="neon", out=tmp_path / "audit")
    edit = erase_on_small_latents(pocket_sized_model, [Concept(name="neon", kind="style")], tmp_path / "edit")
    with pytest.raises(UserError, match="this edit records what it erases"):
        prepare_audit(pocket_sized_model, edit, suite_file, concept="neon", out=tmp_path / "audit")


def test_retrained_models_are_edits_or_paths(
    pocket_sized_model: StableDiffusion, neon_edit: Edit, suite_file: Path, tmp_path: Path
) -> None:
    pipe = tiny.pipeline(size=16, levels=3)
    pipe.unet.conv_out.bias.data += 0.5
    pipe.save_pretrained(tmp_path / "model")
    (by_path,) = prepare_audit(
        pocket_sized_model, neon_edit, suite_file, "smoke", retrained=[tmp_path / "model"], out=tmp_path / "a"
    ).audits
    (by_edit,) = prepare_audit(
        pocket_sized_model, neon_edit, suite_file, "smoke", retrained=by_path.options.retrained[0], out=tmp_path / "a"
    ).audits
    assert by_path.job == by_edit.job and [stack.model for stack in by_edit.stacks] == [BASE, ERASED, retrained_model(1)]


def test_a_suite_is_a_value(suite_file: Path) -> None:
    suite = load_suite(str(suite_file))
    assert isinstance(suite, GridSuite) and suite == load_suite(str(suite_file)) and suite.format == "grid"
    record = yaml.safe_load(suite_file.read_text())
    assert list(suite.styles) == list(record["styles"]) and suite.tiers["smoke"] == (1, 1)
    with pytest.raises(FrozenInstanceError):
        suite.steps = 3  # type: ignore[misc]
