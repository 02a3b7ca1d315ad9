"""The library as a notebook uses it: every public function, on pocket with small fields."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch

import erasure
from erasure.config.registry import load_class
from erasure.edits.stacking import stack_of
from erasure.export import EXPORT_FORMATS
from erasure.methods.base import Method, MethodResult
from erasure.methods.esd import ESD
from erasure.methods.uce import UCE
from erasure.storage.locks import FolderLocked
from tests.factories import METHODS, SMALL_FIELDS

FIELDS: dict[str, Any] = {"steps": 2, "batch": 2, "trajectories": 12, "trajectory_steps": 2}


@pytest.fixture(scope="module")
def pocket() -> Iterator[erasure.DiffusionModel]:
    model = erasure.load_model("pocket", device="cpu", dtype="fp32")
    model.latent_shape = (4, 8, 8)  # quicker; nothing here depends on the size of images
    before = model.fingerprint()
    yield model
    assert model.fingerprint() == before and not stack_of(model.pipe).edits


def test_importing_the_library_imports_no_torch_until_a_name_is_used() -> None:
    code = "import erasure, sys; erasure.UserError; erasure.Concept(name='neon'); print('torch' in sys.modules, erasure.__version__)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert printed == ["False", tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]]


def test_every_public_name_is_there_and_no_submodule_hides_one() -> None:
    for name in METHODS:
        load_class("erasure.methods", name, Method)
    submodules = {path.stem for path in Path("erasure").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert not submodules & set(erasure.__all__)
    assert set(erasure.__all__) <= set(dir(erasure))
    for name in erasure.__all__:
        assert getattr(erasure, name) is not None and (name == "__version__" or getattr(erasure, name).__doc__), name
    with pytest.raises(AttributeError, match="no attribute 'erase_all'"):
        _ = erasure.erase_all  # type: ignore[attr-defined]


def test_six_lines_of_a_notebook(pocket: erasure.DiffusionModel, tmp_path: Path) -> None:
    edit = erasure.erase(pocket, "neon", method="esd", out=str(tmp_path / "neon"), **FIELDS)
    assert (edit.info.method, edit.info.fields["steps"], edit.info.fields["lr"]) == ("esd", 2, 3e-4)  # the recipe's learning rate
    assert edit.info.concepts[0]["prompts"]  # the recipe's
    assert erasure.Edit.load(tmp_path / "neon").digest() == edit.digest()
    noise_seeds, prompts = [1], ["a neon picture of a boat"]
    base = pocket.sample(prompts, noise_seeds, steps=2)
    with erasure.apply_edits(pocket, tmp_path / "neon"):
        assert not torch.equal(pocket.sample(prompts, noise_seeds, steps=2), base)
    assert torch.equal(pocket.sample(prompts, noise_seeds, steps=2), base)
    edit.apply(pocket.pipe)
    edit.revert(pocket.pipe)


def test_a_prepared_erasure_tells_what_it_will_do_and_writes_nothing(pocket: erasure.DiffusionModel, tmp_path: Path) -> None:
    out = tmp_path / "run"
    erasing = erasure.prepare(pocket, "neon; sketchh", "esd", out=out, **{**FIELDS, "trajectories": 24}, lr=None)
    assert [concept.name for concept in erasing.concepts] == ["neon", "sketchh"]
    assert isinstance(erasing.method, ESD) and erasing.method.lr == 3e-4
    assert erasing.changed_defaults["steps"] == 2 and "negative_guidance" not in erasing.changed_defaults
    assert any("sketch" in hint for hint in erasing.hints()) and not erasure.prepare(pocket, "neon", **FIELDS).hints()
    cost = erasing.forecast_cost()
    assert isinstance(cost, erasure.Cost) and cost.unet_backwards == cost.sample_gradients == 2 * 2
    assert erasing.out == out and not out.exists()
    with pytest.raises(FrozenInstanceError):
        erasing.seed = 1  # type: ignore[misc]


def test_the_default_folder_is_named_by_the_hash_of_the_job(
    pocket: erasure.DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, again, other = (erasure.prepare(pocket, "neon", seed=seed, **FIELDS) for seed in (0, 0, 1))
    assert first.out == again.out != other.out and first.out.parent == Path("runs")
    first.run()
    assert (tmp_path / first.out / "result.json").exists()


def test_a_run_is_watched_and_then_loaded(pocket: erasure.DiffusionModel, tmp_path: Path) -> None:
    steps: list[int] = []
    erasing = erasure.prepare(pocket, "neon", out=tmp_path / "run", **FIELDS)
    edit = erasing.run(watch=lambda method, context: steps.append(method.steps))
    assert steps == [2, 2]
    assert erasing.run(watch=lambda *_: pytest.fail("it is complete")).digest() == edit.digest()


def test_a_preview_of_a_closed_form(pocket: erasure.DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = erasure.prepare(pocket, "neon", "uce", out=tmp_path / "uce")
    first = closed.preview()
    assert first["rank"] >= 1 and first["collateral"] and not (tmp_path / "uce").exists()
    edit, digests = erasure.erase(pocket, "sketch", "uce", out=tmp_path / "sketch"), []

    def solve(self: UCE, model: erasure.DiffusionModel, *_: object) -> MethodResult:
        digests.extend(applied.digest() for applied, _ in stack_of(model.pipe).edits)
        return MethodResult({})

    monkeypatch.setattr(UCE, "solve", solve)
    erasure.prepare(pocket, "neon", "uce", after=edit).preview()
    assert digests == [edit.digest()]  # it is solved on top of the other edit
    with pytest.raises(erasure.UserError, match="only closed forms such as uce have a preview; ESD is not one"):
        erasure.prepare(pocket, "neon", "esd", **FIELDS).preview()


def test_concepts_may_be_text_concepts_or_several(pocket: erasure.DiffusionModel) -> None:
    own = erasure.Concept(name="boat", kind="object", prompts=("a {}",), anchor="tree")
    for concepts, expected in (
        (own, ["boat"]),
        ([own], ["boat"]),
        (["neon", "sketch"], ["neon", "sketch"]),
        ([own, "tree; house"], ["boat", "tree", "house"]),
    ):
        assert [c.name for c in erasure.prepare(pocket, concepts, "negative_prompt").concepts] == expected  # type: ignore[arg-type]
    assert erasure.prepare(pocket, own, "negative_prompt").concepts == (own,)
    given = erasure.prepare(pocket, "boat", "negative_prompt", kind="object", prompts="one {}", anchor="tree").concepts[0]
    assert given == erasure.Concept(name="boat", kind="object", prompts=("one {}",), anchor="tree")


def test_a_method_given_as_it_is_has_no_recipe(pocket: erasure.DiffusionModel) -> None:
    erasing = erasure.prepare(pocket, "neon", ESD(**FIELDS))
    assert erasing.method == ESD(**FIELDS) and erasing.concepts[0].prompts == ()
    assert erasing.changed_defaults == FIELDS
    with pytest.raises(erasure.UserError, match="lr: fields are for a method given by its name; set them on the ESD instead"):
        erasure.prepare(pocket, "neon", ESD(**FIELDS), lr=1e-3)


def test_edits_underneath_may_be_paths(pocket: erasure.DiffusionModel, tmp_path: Path) -> None:
    first = erasure.erase(pocket, "neon", "uce", out=tmp_path / "first")
    second = erasure.erase(pocket, "sketch", "uce", after=str(tmp_path / "first"), out=tmp_path / "second")
    assert second.after == [first.digest()]
    assert erasure.prepare(pocket, "plain", "uce", anchor="", after=[first, tmp_path / "second"]).after[1].digest() == second.digest()
    with pytest.raises(erasure.UserError, match="given twice"):
        erasure.prepare(pocket, "plain", "uce", after=[first, tmp_path / "first"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "esdd"}, "unknown method 'esdd'. Did you mean 'esd'"),
        ({"method": 3}, "method must be the name of a method or an erasure.methods.base.Method, got 3"),
        ({"negative_guidnce": 2.0}, "unknown field 'negative_guidnce'. Did you mean 'negative_guidance'"),
        ({"steps": 0}, "steps must be greater than or equal to 1"),
        ({"steps": "ten"}, "steps must be a whole number"),
        ({"seed": -1}, "a seed is a whole number from 0"),
        ({"concepts": ""}, "every concept needs a name"),
        ({"concepts": "neon; Neon"}, "named twice"),
        ({"concepts": []}, "there is no concept to erase"),
        ({"concepts": 5}, "concepts must be text, a Concept or a list of these, got 5"),
        ({"concepts": [3]}, "concepts must be text, a Concept or a list of these, got [3]"),
        ({"kind": "stile"}, "unknown kind 'stile'. Did you mean 'style'"),
        ({"prompts": ("neon",)}, "exactly one {}"),
        ({"concepts": erasure.Concept(name="a"), "kind": "object"}, "are for concepts given as text"),
        ({"concepts": erasure.Concept(name="a"), "anchor": "b"}, "are for concepts given as text"),
        ({"after": "runs/nowhere"}, "no edit at runs/nowhere"),
        ({"after": 5}, "after must be an Edit, a path or a list of these, got 5"),
        ({"mask": "nowhere"}, "no mask at nowhere"),
        ({"method": "uce", "mask": "nowhere"}, "UCE trains nothing"),
        ({"method": "sfd", "gradient_checkpointing": True}, "does not work with SFD"),
        ({"report_to": "nowhere"}, "unknown report_to 'nowhere'. Available: mlflow, none"),
        ({"trajectories": 1}, "prompts need as many --trajectories, got 1"),
        ({"model": 3}, "model must be what erasure.load_model returns, or a source such as 'pocket', got 3"),
        ({"model": "safetensor"}, "no model at 'safetensor'"),
        ({"seed": "a"}, "seed must be a whole number, got 'a'"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"out": 3}, "out must be a path or None, got 3"),
        ({"out": "a\0b"}, "its name holds a NUL"),
        ({"mask": 3}, "mask must be a path or None, got 3"),
        ({"fresh": "yes"}, "fresh must be True or False, got 'yes'"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing must be True or False, got 1"),
        ({"anchor": None}, "anchor must be text, got None"),
        ({"prompts": 3}, "prompts must be text or a list of texts, got 3"),
        ({"kind": ["style"]}, "unknown kind ['style']"),
        ({"after": [None]}, "after must be an Edit, a path or a list of these, got [None]"),
        ({"method": ["esd"]}, "method must be the name of a method or an erasure.methods.base.Method, got ['esd']"),
        ({"method": ESD}, "got <class 'erasure.methods.esd.ESD'>"),
        ({"method": "salun", "retain_prompts": "a boat"}, "retain_prompts must be a list of texts, got 'a boat'"),
        ({"method": "sfd", "distill_trajectories": 1}, "prompts need as many --retain-trajectories, got 1"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    pocket: erasure.DiffusionModel, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    method_fields = FIELDS if arguments.get("method", "esd") == "esd" else {}
    with pytest.raises(erasure.UserError, match=r"^[^\n]*$") as caught:
        erasure.prepare(**{"model": pocket, "concepts": "neon", "out": tmp_path / "run", **method_fields, **arguments})
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_every_function_refuses_a_model_that_is_none(pocket: erasure.DiffusionModel, tmp_path: Path) -> None:
    edit = erasure.erase(pocket, "neon", "uce", out=tmp_path / "edit")
    pipe: Any = pocket.pipe
    message = r"^model must be what erasure\.load_model returns, or a source such as 'pocket', got a StableDiffusionPipeline\.$"
    for call in (
        lambda: erasure.prepare(pipe, "neon"),
        lambda: erasure.erase(pipe, "neon"),
        lambda: erasure.export_edit(pipe, edit, "lora", tmp_path / "out"),
        lambda: erasure.list_methods()[0].forecast_cost(pipe),
    ):
        with pytest.raises(erasure.UserError, match=message):
            call()
    for wrong in (pipe, "pocket"):  # an edit applied to a model that nobody holds would do nothing
        with (
            pytest.raises(erasure.UserError, match=r"model must be what erasure\.load_model returns, got"),
            erasure.apply_edits(wrong, edit),
        ):
            pass
    with pytest.raises(erasure.UserError, match="StableDiffusion has no unet or transformer and no text_encoder; give its pipe"):
        edit.apply(pocket)
    assert not (tmp_path / "out").exists()


def test_a_model_may_be_given_by_its_source(pocket: erasure.DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []
    monkeypatch.setattr("erasure.loading.loader.load_model", lambda source: loaded.append(source) or pocket)
    edit = erasure.erase("pocket", "neon", "uce", out=tmp_path / "edit")
    erasure.export_edit(Path("base"), edit, "edit", tmp_path / "export")
    assert erasure.list_methods()[0].forecast_cost("pocket").unet_forwards
    assert loaded == ["pocket", Path("base"), "pocket"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": "8"}, "rank must be a whole number or None, got '8'"),
        ({"out": None}, "out must be a path, got None"),
        ({"edit": 3}, "edit must be an Edit or a path, got 3"),
        ({"format": ["lora"]}, "format must be text, got ['lora']"),
        ({"layout": 3}, "layout must be one of 'kohya', 'diffusers' or None, got 3"),
        ({"other_base": "no"}, "other_base must be True or False, got 'no'"),
    ],
)
def test_a_mistake_in_an_export_is_one_line(
    pocket: erasure.DiffusionModel, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(erasure.UserError, match=r"^[^\n]*$") as caught:
        erasure.export_edit(**{"model": pocket, "edit": tmp_path, "format": "lora", "out": tmp_path / "out", **arguments})
    assert message in str(caught.value)


def test_an_export_into_the_folder_of_another_tells_whose_it_is(pocket: erasure.DiffusionModel, tmp_path: Path) -> None:
    edit = erasure.erase(pocket, "neon", "uce", out=tmp_path / "edit")
    erasure.export_edit(pocket, edit, "edit", tmp_path / "out")
    with pytest.raises(erasure.UserError, match=r"out holds neon, erased with uce; choose another --out"):
        erasure.export_edit(pocket, edit, "lora", tmp_path / "out")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("# mine")
    with pytest.raises(erasure.UserError, match=r"notes exists and is not empty"):
        erasure.export_edit(pocket, edit, "lora", tmp_path / "notes")


def test_what_is_printed_of_a_value_is_short(pocket: erasure.DiffusionModel, tmp_path: Path) -> None:
    erasing = erasure.prepare(pocket, "neon", "uce", out=tmp_path / "edit")
    assert repr(erasing) == f"Erasure(UCE, neon, on pocket, into {tmp_path / 'edit'})"
    assert repr(pocket) == "StableDiffusion(pocket, pocket, cpu, float32)"
    edit = erasing.run()
    megabytes = (tmp_path / "edit" / "edit.safetensors").stat().st_size / 1e6
    assert repr(edit).startswith("Edit(uce, neon, ") and abs(float(repr(edit).split()[2]) - megabytes) < 0.1


def test_a_folder_of_another_job_or_another_process_is_refused_before_the_work(
    pocket: erasure.DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    erasure.erase(pocket, "neon", "uce", out=tmp_path)
    with pytest.raises(
        erasure.UserError, match=r"holds the erasure of neon \(uce\); this one is sketch \(uce\)\. Choose another --out, or --fresh"
    ):
        erasure.prepare(pocket, "sketch", "uce", out=tmp_path)
    assert erasure.prepare(pocket, "sketch", "uce", out=tmp_path, fresh=True).fresh

    def refuse(folder: Path) -> None:
        raise FolderLocked(f"{folder} is being written")

    monkeypatch.setattr("erasure.erasing.check_unlocked", refuse)
    with pytest.raises(FolderLocked, match="is being written"):
        erasure.prepare(pocket, "neon", "uce", out=tmp_path)


@pytest.mark.parametrize("export_format", EXPORT_FORMATS)
def test_exports_take_an_edit_or_its_path(pocket: erasure.DiffusionModel, tmp_path: Path, export_format: str) -> None:
    method = "advunlearn" if export_format == "text-encoder" else "uce"
    small = {**SMALL_FIELDS["advunlearn"], "trajectories": 12} if method == "advunlearn" else {}
    erasure.erase(pocket, "neon", method, out=tmp_path / "edit", **small)
    report = erasure.export_edit(pocket, str(tmp_path / "edit"), export_format, str(tmp_path / "out"))
    assert (tmp_path / "out" / "README.md").exists()
    assert (report is not None) == (export_format == "lora")
    with pytest.raises(erasure.UserError, match="unknown format"):
        erasure.export_edit(pocket, tmp_path / "edit", "lorra", tmp_path / "other")


def test_methods_are_described_with_their_cost(pocket: erasure.DiffusionModel) -> None:
    described = {method.name: method for method in erasure.list_methods()}
    assert list(described) == METHODS
    for name, method in described.items():
        assert method.summary and method.paper.startswith("arXiv:") == (name != "sfd_matching") and method.changes and method.when
        assert method.method_class is load_class("erasure.methods", name, Method)
        assert method.forecast_cost(pocket).unet_forwards > 0
    esd = described["esd"]
    assert (esd.product, described["sld"].product, described["sfd"].product) == ("weights", "guidance", "one-step")
    assert esd.forecast_cost(pocket) == erasure.prepare(pocket, "concept").forecast_cost()
    assert esd.forecast_cost(pocket, "a; b").unet_forwards > esd.forecast_cost(pocket).unet_forwards
    assert esd.forecast_cost(pocket, steps=1).unet_backwards == 8
    assert esd.forecast_cost(pocket, kind="object") != described["salun"].forecast_cost(pocket, kind="object")
    with pytest.raises(erasure.UserError, match="unknown field"):
        esd.forecast_cost(pocket, stepps=1)


@pytest.mark.parametrize("name", METHODS)
def test_no_field_of_a_method_has_the_name_of_an_argument(name: str) -> None:
    arguments = {*signature(erasure.erase).parameters, *signature(erasure.prepare).parameters} - {"fields"}
    assert not arguments & {f.name for f in fields(load_class("erasure.methods", name, Method))}


def test_erase_takes_what_prepare_takes() -> None:
    assert str(signature(erasure.erase)).partition(" -> ")[0] == str(signature(erasure.prepare)).partition(" -> ")[0]


def test_the_model_is_loaded_from_a_path_or_a_name(pocket: erasure.DiffusionModel) -> None:
    folder = Path("erasure") / "pocket" / "weights"
    assert erasure.load_model(folder, device="cpu", dtype="bf16", attention="eager").fingerprint() == pocket.fingerprint()
    assert (pocket.compute_dtype, pocket.attention, pocket.source) == (torch.float32, "auto", "pocket")
    for wrong in ({"source": "nowhere"}, {"device": "abacus"}, {"dtype": "fp8"}, {"attention": "none"}):
        with pytest.raises(erasure.UserError):
            erasure.load_model(**wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_wheel_says_that_it_is_typed(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy, because setuptools leaves a build folder in it
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(name, source)
    for package in ("erasure", "eval", "app", "prompts"):
        shutil.copytree(package, source / package, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert {"erasure/py.typed", "eval/py.typed"} <= set(zipfile.ZipFile(wheel).namelist())
