"""edit.json and edit.safetensors as somebody else may hand them over: every damaged one is one line, and none is let through."""

import copy
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from erasure.concept import Concept
from erasure.edits import Edit, apply_edits
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from tests import tiny
from tests.erasure.edits.test_transaction import FORMS, edit_of

WRONG: tuple[Any, ...] = (None, True, -1, 3.5, 10**30, "", "x" * 20_000, "\x00", [], [[]], {}, {"": None}, [None, 1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An edit of every form, as it is saved."""
    folders, pipe = {form: tmp_path_factory.mktemp(form) for form in FORMS}, tiny.pipeline()
    for form, folder in folders.items():
        edit_of(pipe, form, layers=2).save(folder)
    return folders


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a record, the whole first."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def changed(record: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    record = copy.deepcopy(record)
    inside = record
    for key in path[:-1]:
        inside = inside[key]
    change(inside, path[-1])
    return record


def put(value: Any) -> Callable[[Any, Any], None]:
    def change(inside: Any, key: Any) -> None:
        inside[key] = value

    return change


def drop(inside: Any, key: Any) -> None:
    del inside[key]


def stranger(inside: Any, key: Any) -> None:
    if isinstance(inside, dict):
        inside["stranger"] = 1


def hostile(record: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Mutations of edit.json: a key away, a strange key, other values, and text that is not strict JSON; each with the key it is in."""
    rng = random.Random(0)
    ways = [path for path in places(record) if path]
    for path in ways:
        yield path[0], json.dumps(changed(record, path, drop)).encode()
        for value in rng.sample(WRONG, 6):
            yield path[0], json.dumps(changed(record, path, put(value))).encode()
    for path in [("method",), ("base", "source"), ("concepts", 0, "name")]:
        yield "", json.dumps(changed(record, path, stranger)).encode()
    text = json.dumps(record)
    yield from (
        ("", data)
        for data in (b"", b"[]", b"null", b"3", b'"edit"', b"{", b"\xff\xfe" + text.encode("utf-16-le"), text.encode()[: len(text) // 2])
    )
    yield "", text.replace('"seed": 0', '"seed": 0, "seed": 0').encode()
    yield "", b"[" * 100_000 + b"]" * 100_000
    for value in (
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "9" * 5_000,
        "9" * 30,
        '"\\ud800"',
        "[" * 500 + "]" * 500,
        '"' + "x" * 200_000 + '"',
    ):
        yield "", text.replace('"notes": {', f'"notes": {{"a": {value}, ').encode()
        yield "", text.replace('"cost": {', f'"cost": {{"a": {value}, ').encode()
    yield "", text.replace('"method"', '"method\\u0000"').encode()
    yield "", text.encode() + b" " * (33 * 2**20)


@pytest.mark.parametrize("form", ("value", "guidance", "one-step"))
def test_hostile_records_are_one_line(form: str, saved: dict[str, Path], tmp_path: Path) -> None:
    record = json.loads((saved[form] / "edit.json").read_text())
    record["known"] = [{"name": "cat", "concept": 0.5, "nonsense": 0.25, "doubtful": False}]
    record |= {"versions": {"torch": "2.10"}, "cost": {"unet_forwards": 3}, "notes": {"layers": {"unet.a": 0.5}}}
    record["base"]["after"] = ["0123456789abcdef"]
    (tmp_path / "edit.safetensors").write_bytes((saved[form] / "edit.safetensors").read_bytes())
    tried, allowed = 0, set()
    for key, text in hostile(record):
        (tmp_path / "edit.json").write_bytes(text)
        tried += 1
        try:
            edit = Edit.load(tmp_path)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            continue
        allowed.add(key)  # such as another seed: then it is a whole edit, and saves and names itself like one
        edit.save(tmp_path / "again")
        assert Edit.load(tmp_path / "again").digest() == edit.digest() and edit.name
    assert tried > 250
    assert allowed <= {"fields", "notes", "known", "versions", "cost", "seed", "concepts", "base"}  # what may hold other values


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ((("concepts",), []), "concepts .*at least 1 item"),
        ((("format",), 2), "has format '2', this version reads 3; make the edit again"),
        ((("product",), "weigths"), "Did you mean 'weights'"),
        ((("seed",), 1.5), "seed must be a valid integer"),
        ((("seed",), -1), "seed must be greater than or equal to 0, got -1"),
        ((("seed",), 2**63), "seed must be less than 9223372036854775808, got 9223372036854775808"),
        ((("concepts", 0, "kind"), "styles"), "Did you mean 'style'"),
        ((("concepts", 0, "prompts"), ["no slot"]), "exactly one {}"),
        ((("base", "fingerprint"), "0" * 63), "base.fingerprint"),
        ((("base", "after"), ["../../etc"]), "base.after"),
        ((("method",), "<script>"), "method"),
        ((("cost",), {"unet_forwards": -1}), "cost.unet_forwards"),
    ],
)
def test_faults_of_a_record_are_named(change: tuple[tuple[Any, ...], Any], complaint: str, saved: dict[str, Path], tmp_path: Path) -> None:
    record = json.loads((saved["value"] / "edit.json").read_text())
    (tmp_path / "edit.safetensors").write_bytes((saved["value"] / "edit.safetensors").read_bytes())
    (tmp_path / "edit.json").write_text(json.dumps(changed(record, change[0], put(change[1]))))
    with pytest.raises(UserError, match=complaint):
        Edit.load(tmp_path)


def test_any_flipped_bit_of_the_tensors_is_found(saved: dict[str, Path], tmp_path: Path) -> None:
    rng = random.Random(1)
    for form in FORMS:
        data = (saved[form] / "edit.safetensors").read_bytes()
        (tmp_path / "edit.json").write_bytes((saved[form] / "edit.json").read_bytes())
        for at in [*range(16), len(data) - 1, *(rng.randrange(len(data)) for _ in range(40))]:
            flipped = bytearray(data)
            flipped[at] ^= 1 << rng.randrange(8)
            (tmp_path / "edit.safetensors").write_bytes(flipped)
            with pytest.raises(UserError, match=r"broken edit: edit.safetensors is not the file"):
                Edit.load(tmp_path)


def signed(folder: Path, tensors: dict[str, torch.Tensor] | bytes, record: dict[str, Any]) -> Path:
    """A hostile edit whose digest is right."""
    file = folder / "edit.safetensors"
    if isinstance(tensors, bytes):
        file.write_bytes(tensors)
    else:
        save_file(tensors, file)
    (folder / "edit.json").write_text(json.dumps({**record, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}))
    return folder


W, ONE = "unet.mid_block.attentions.0.to_q.weight", torch.ones(4, 3).half()
UP, DOWN = torch.ones(4, 2).half(), torch.ones(2, 3).half()


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({}, "0 tensors"),
        ({W: torch.full((4, 3), float("nan")).half()}, r"to_q\.weight in the edit holds NaN or Inf \(12 of 12"),
        ({W: torch.tensor([1.0, float("inf")])}, "NaN or Inf"),
        ({W + "::up": UP, W + "::down": DOWN * float("nan")}, "::down in the edit holds NaN or Inf"),
        ({W: ONE.double()}, "has dtype float64"),
        ({W: ONE.int()}, "has dtype int32; allowed are float16, bfloat16, float32"),
        ({W: ONE.bool()}, "has dtype bool"),
        ({W: ONE[:0]}, r"is empty \(shape \(0, 3\)\)"),
        ({W + "::up": UP, W + "::down": DOWN[:0]}, "is empty"),
        ({W + "::up": UP}, "has ::up in the edit; it needs"),
        ({W + "::down": DOWN}, "has ::down in the edit; it needs"),
        ({W: ONE, W + "::up": UP, W + "::down": DOWN}, "::down and ::up and? new values|new values and ::down and ::up"),
        ({W: ONE, W + "::zeroed": torch.tensor([1])}, "new values and ::zeroed"),
        ({W + "::up": UP, W + "::down": torch.ones(3, 3).half()}, "do not multiply"),
        ({W + "::up": UP[:, :, None, None], W + "::down": DOWN}, "do not multiply"),
        ({W + "::up": torch.ones(4, 2, 3, 3).half(), W + "::down": torch.ones(2, 3, 3, 3).half()}, "do not multiply"),
        ({W + "::up": UP[0], W + "::down": DOWN[0]}, "do not multiply"),
        ({W + "::up": UP.int(), W + "::down": DOWN}, "::up in the edit has dtype int32"),
        ({W + "::zeroed": torch.tensor([1.0])}, "::zeroed in the edit has dtype float32; allowed are int32, int64"),
        ({W + "::zeroed": torch.tensor([-1, 2])}, "holds the negative index -1"),
        ({W + "::zeroed": torch.tensor([2, 2])}, "unordered or duplicated"),
        ({W + "::zeroed": torch.tensor([3, 2])}, "unordered or duplicated"),
        ({W + "::zeroed": torch.tensor([[1]])}, "has 2 dimensions"),
        ({W + "::zeroed": torch.tensor([], dtype=torch.int32)}, "is empty"),
        ({W + "::alpha": ONE}, "unknown suffix; known are ::up, ::down and ::zeroed"),
        ({W + "::": ONE}, "unknown suffix"),
        ({W + "::up::up": UP}, "unknown suffix"),
        ({"vae.encoder.weight": ONE}, "is not the name of a parameter of unet or text_encoder"),
        ({"unet": ONE}, "is not the name"),
        ({"unet../x": ONE}, "is not the name"),
        ({"": ONE}, "is not the name"),
        (b"", "broken edit"),
        (b"\xff" * 8, "broken edit"),
        ((2).to_bytes(8, "little") + b"{}", "0 tensors"),
        ((2**40).to_bytes(8, "little") + b"{}", "broken edit"),
        ((4).to_bytes(8, "little") + b"\xff\xff{}", "broken edit"),
    ],
)
def test_hostile_tensors_are_named(tensors: Any, complaint: str, saved: dict[str, Path], tmp_path: Path) -> None:
    record = json.loads((saved["value"] / "edit.json").read_text())
    with pytest.raises(UserError, match=complaint) as error:
        Edit.load(signed(tmp_path, tensors, record))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("form", "fields", "complaint"),
    [
        ("guidance", {"scale": "much"}, "scale must be a valid number, got 'much'"),
        ("guidance", {"warmth": 1}, "Did you mean 'warmup'"),
        ("guidance", {"warmup": 7.0}, "--warmup"),
        ("guidance", {"scale": [1]}, "scale must be a valid number"),
        ("one-step", {}, "field start must be a timestep from 0 to 999, got None"),
        ("one-step", {"start": 1000}, "got 1000"),
        ("one-step", {"start": -1}, "got -1"),
        ("one-step", {"start": "625"}, "got 625"),
        ("one-step", {"start": True}, "got True"),
    ],
)
def test_fields_that_build_nothing_are_refused(form: str, fields: Any, complaint: str, saved: dict[str, Path], tmp_path: Path) -> None:
    record = json.loads((saved[form] / "edit.json").read_text())
    data = (saved[form] / "edit.safetensors").read_bytes()
    with pytest.raises(UserError, match=complaint):
        Edit.load(signed(tmp_path, data, {**record, "fields": fields}))


def test_a_method_that_does_not_guide_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    record = json.loads((saved["guidance"] / "edit.json").read_text())
    data = (saved["guidance"] / "edit.safetensors").read_bytes()
    for method, complaint in (("esd", "method of another kind"), ("sldd", "Did you mean 'sld'"), ("base", "unknown method")):
        with pytest.raises(UserError, match=complaint):
            Edit.load(signed(tmp_path, data, {**record, "method": method}))
    with pytest.raises(UserError, match="guidance edit and has 2 tensors"):
        Edit.load(signed(tmp_path, (saved["value"] / "edit.safetensors").read_bytes(), record))


def test_indices_beyond_the_weight_do_not_fit(model: StableDiffusion) -> None:
    edit = edit_of(model.pipe, "zeroed", layers=1)
    (key,) = edit.tensors
    with pytest.raises(UserError, match="does not fit this model"):
        Edit({key: torch.tensor([0, 10**6])}, edit.info).apply(model.pipe)


def test_places_that_hold_no_edit(saved: dict[str, Path], tmp_path: Path) -> None:
    good = saved["value"]
    for place in (good, str(good), good / "edit.json", good / "edit.safetensors"):
        assert Edit.load(place).tensors
    assert Edit.load(good.rename(tmp_path / "named.json")).tensors  # a folder may be called like a file
    (tmp_path / "named.json").rename(good)
    half = tmp_path / "half"
    half.mkdir()
    with pytest.raises(UserError, match=r"edit\.safetensors and edit\.json are missing"):
        Edit.load(half)
    (half / "edit.safetensors").write_bytes((good / "edit.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"edit\.json is missing"):
        Edit.load(half)
    (half / "edit.json").mkdir()
    for place in (half, half / "edit.json"):
        with pytest.raises(UserError, match="no edit at"):
            Edit.load(place)
    for place in (tmp_path / "none", good / "other.safetensors", tmp_path / ("x" * 5000), "a\x00b"):
        with pytest.raises(UserError, match=r"no edit at|broken edit"):
            Edit.load(place)
    for thing in (None, 10**5000, [good]):
        with pytest.raises(UserError, match=r"loaded from the path of its folder, got a value of type (NoneType|int|list)\."):
            Edit.load(thing)  # type: ignore[arg-type]


def test_a_kill_between_the_two_files_is_found(model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = edit_of(model.pipe, "value", seed=1), edit_of(model.pipe, "value", seed=2)

    class Killed(BaseException):
        pass

    def killed(path: Path, record: Any) -> None:
        raise Killed

    for before in (None, first):  # into an empty folder, and over an older edit
        folder = tmp_path / str(before is None)
        if before:
            before.save(folder)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr("erasure.edits.edit.write_json", killed)
            second.save(folder)
        with pytest.raises(UserError, match=r"edit\.json is missing|not the file that edit\.json was written for"):
            Edit.load(folder)
        second.save(folder)
        assert Edit.load(folder).digest() == second.digest()


def test_nothing_is_written_that_could_not_be_read(model: StableDiffusion, tmp_path: Path) -> None:
    edit = edit_of(model.pipe, "value", layers=1)
    (key,) = edit.tensors
    broken = [
        (Edit({key: edit.tensors[key] * float("nan")}, edit.info), "NaN or Inf"),
        (Edit(edit.tensors, replaced(edit, notes={"error": float("nan")})), "not finite"),
        (Edit(edit.tensors, replaced(edit, concepts=[])), "at least 1 item"),
    ]
    for wrong, complaint in broken:
        with pytest.raises(UserError, match=complaint):
            wrong.save(tmp_path / "x")
        assert not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="NaN or Inf"):
        broken[0][0].apply(model.pipe)


def replaced(edit: Edit, **values: Any) -> Any:
    from dataclasses import replace

    return replace(edit.info, **values)


def test_the_largest_seed_and_a_folder_by_name(model: StableDiffusion, tmp_path: Path) -> None:
    edit = edit_of(model.pipe, "value", layers=1)
    largest = Edit(edit.tensors, replaced(edit, seed=2**63 - 1))
    largest.save(str(tmp_path / "x"))
    assert Edit.load(str(tmp_path / "x")).info.seed == 2**63 - 1
    with pytest.raises(UserError, match="seed must be greater than or equal to 0, got -1"):
        Edit(edit.tensors, replaced(edit, seed=-1)).save(tmp_path / "y")


def test_a_name_is_one_line(saved: dict[str, Path], tmp_path: Path) -> None:
    record = json.loads((saved["value"] / "edit.json").read_text())
    record["concepts"][0]["name"] = "neon\n\x1b[31mred" + "x" * 1000
    edit = Edit.load(signed(tmp_path, (saved["value"] / "edit.safetensors").read_bytes(), record))
    assert edit.name.startswith("esd (neon [31mredx") and len(edit.name) < 220
    record["versions"]["a\n\x1bb"] = "1"
    with pytest.raises(UserError, match=r"versions\.a \\x1bb"):
        Edit.load(signed(tmp_path, (saved["value"] / "edit.safetensors").read_bytes(), record))


def test_texts_of_a_concept_can_be_written() -> None:
    for name in ("x" * 10_001, "caf\udce9"):
        with pytest.raises(UserError, match="valid Unicode of at most 10,000 characters"):
            Concept(name=name)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_edit_gives_the_same_bytes(form: str, model: StableDiffusion, saved: dict[str, Path], tmp_path: Path) -> None:
    edit = Edit.load(saved[form])
    edit.save(tmp_path)
    for name in ("edit.json", "edit.safetensors"):
        assert (tmp_path / name).read_bytes() == (saved[form] / name).read_bytes()
    with apply_edits(model, [edit]):
        pass


def test_one_edit_twice_is_refused(saved: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from app.cli import main

    folder = str(saved["value"])
    assert main(["audit", folder, folder + "/edit.json"]) == 1
    assert "esd (cat 0) is given twice" in capsys.readouterr().err
    assert main(["erase", "--concept", "neon", "--on", folder, folder]) == 1
    assert "esd (cat 0) is given twice" in capsys.readouterr().err
    for strength in ("nan", "inf", "-inf", "11"):
        assert main(["audit", folder, "--strength", strength]) == 1
        assert ("from -10 to 10" if strength == "11" else "--strength must be a finite number") in capsys.readouterr().err
