"""edit.json and edit.safetensors as somebody else may hand them over: every damaged one is one line, and none is let through."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from erasure.concept import Concept
from erasure.edits import Edit, apply_edits
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from tests.synthetic_edits import EDIT_KINDS, edit_of_kind, write_with_checksum

WRONG: tuple[Any, ...] = (None, True, -1, 3.5, 10**30, "", "x" * 20_000, "\x00", [], [[]], {}, {"": None}, [None, 1])


def value_paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value of a record, the whole first."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from value_paths(value[key], (*path, key))


def change_record(record: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    record = copy.deepcopy(record)
    inside = record
    for key in path[:-1]:
        inside = inside[key]
    change(inside, path[-1])
    return record


def set_value(value: Any) -> Callable[[Any, Any], None]:
    def change(inside: Any, key: Any) -> None:
        inside[key] = value

    return change


def remove_key(inside: Any, key: Any) -> None:
    del inside[key]


def add_unknown_key(inside: Any, key: Any) -> None:
    if isinstance(inside, dict):
        inside["unknown_key"] = 1


def hostile_records(record: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Perturbed versions of edit.json: a key removed or added, other values, text that is not strict JSON; each with its top-level key."""
    rng = random.Random(0)
    paths = [path for path in value_paths(record) if path]
    for path in paths:
        yield path[0], json.dumps(change_record(record, path, remove_key)).encode()
        for value in rng.sample(WRONG, 6):
            yield path[0], json.dumps(change_record(record, path, set_value(value))).encode()
    for path in [("method",), ("base", "source"), ("concepts", 0, "name")]:
        yield "", json.dumps(change_record(record, path, add_unknown_key)).encode()
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


@pytest.mark.parametrize("kind", ("value", "guidance", "one-step"))
def test_hostile_records_are_one_line(kind: str, saved_edits: dict[str, Path], tmp_path: Path) -> None:
    record = json.loads((saved_edits[kind] / "edit.json").read_text())
    record["concept_checks"] = [{"name": "cat", "concept_influence": 0.5, "nonsense_influence": 0.25, "weakly_known": False}]
    record |= {"versions": {"torch": "2.10"}, "cost": {"unet_forwards": 3}, "notes": {"layers": {"unet.a": 0.5}}}
    record["base"]["after"] = ["0123456789abcdef"]
    (tmp_path / "edit.safetensors").write_bytes((saved_edits[kind] / "edit.safetensors").read_bytes())
    tried, allowed = 0, set()
    for key, text in hostile_records(record):
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
    assert allowed <= {"fields", "notes", "concept_checks", "versions", "cost", "seed", "concepts", "base"}  # what may hold other values


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ((("concepts",), []), "concepts .*at least 1 item"),
        ((("format",), 3), "has format '3', this version reads 4; make the edit again"),
        ((("product",), "weigths"), "Did you mean 'weights'"),
        ((("seed",), 1.5), "seed must be a whole number"),
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
def test_faults_of_a_record_are_named(
    change: tuple[tuple[Any, ...], Any], complaint: str, saved_edits: dict[str, Path], tmp_path: Path
) -> None:
    record = json.loads((saved_edits["value"] / "edit.json").read_text())
    (tmp_path / "edit.safetensors").write_bytes((saved_edits["value"] / "edit.safetensors").read_bytes())
    (tmp_path / "edit.json").write_text(json.dumps(change_record(record, change[0], set_value(change[1]))))
    with pytest.raises(UserError, match=complaint):
        Edit.load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "fields", "complaint"),
    [
        ("guidance", {"scale": "much"}, "scale must be a number, got 'much'"),
        ("guidance", {"warmth": 1}, "Did you mean 'warmup'"),
        ("guidance", {"warmup": 7.0}, "--warmup"),
        ("guidance", {"scale": [1]}, "scale must be a number"),
        ("one-step", {}, "field init_timestep must be a timestep, a whole number from 0, got None"),
        ("one-step", {"init_timestep": -1}, "got -1"),
        ("one-step", {"init_timestep": "625"}, "got 625"),
        ("one-step", {"init_timestep": True}, "got True"),
    ],
)
def test_fields_that_build_nothing_are_refused(
    kind: str, fields: Any, complaint: str, saved_edits: dict[str, Path], tmp_path: Path
) -> None:
    record = json.loads((saved_edits[kind] / "edit.json").read_text())
    data = (saved_edits[kind] / "edit.safetensors").read_bytes()
    with pytest.raises(UserError, match=complaint):
        Edit.load(write_with_checksum(tmp_path, data, {**record, "fields": fields}))


def test_a_method_that_does_not_guide_is_refused(saved_edits: dict[str, Path], tmp_path: Path) -> None:
    record = json.loads((saved_edits["guidance"] / "edit.json").read_text())
    data = (saved_edits["guidance"] / "edit.safetensors").read_bytes()
    for method, complaint in (("esd", "method of another kind"), ("sldd", "Did you mean 'sld'"), ("base", "unknown method")):
        with pytest.raises(UserError, match=complaint):
            Edit.load(write_with_checksum(tmp_path, data, {**record, "method": method}))
    with pytest.raises(UserError, match="guidance edit and has 2 tensors"):
        Edit.load(write_with_checksum(tmp_path, (saved_edits["value"] / "edit.safetensors").read_bytes(), record))


def test_paths_without_an_edit(saved_edits: dict[str, Path], tmp_path: Path) -> None:
    good = saved_edits["value"]
    for path in (good, str(good), good / "edit.json", good / "edit.safetensors"):
        assert Edit.load(path).tensors
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
    for path in (half, half / "edit.json"):
        with pytest.raises(UserError, match="no edit at"):
            Edit.load(path)
    for path in (tmp_path / "none", good / "other.safetensors", tmp_path / ("x" * 5000), "a\x00b"):
        with pytest.raises(UserError, match=r"no edit at|broken edit"):
            Edit.load(path)
    for value in (None, 10**5000, [good]):
        with pytest.raises(UserError, match=r"^folder must be a path, got (None|a number of too many digits|\[.*)\.$"):
            Edit.load(value)  # type: ignore[arg-type]


def test_a_kill_between_the_two_files_is_detected(model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = edit_of_kind(model.pipe, "value", seed=1), edit_of_kind(model.pipe, "value", seed=2)

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
    edit = edit_of_kind(model.pipe, "value", layers=1)
    (key,) = edit.tensors
    broken = [
        (Edit({key: edit.tensors[key] * float("nan")}, edit.info), "NaN or Inf"),
        (Edit(edit.tensors, replace_info(edit, notes={"error": float("nan")})), "not finite"),
        (Edit(edit.tensors, replace_info(edit, concepts=[])), "at least 1 item"),
    ]
    for wrong, complaint in broken:
        with pytest.raises(UserError, match=complaint):
            wrong.save(tmp_path / "x")
        assert not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="NaN or Inf"):
        broken[0][0].apply(model.pipe)


def replace_info(edit: Edit, **values: Any) -> Any:
    from dataclasses import replace

    return replace(edit.info, **values)


def test_the_largest_seed_and_a_folder_by_name(model: StableDiffusion, tmp_path: Path) -> None:
    edit = edit_of_kind(model.pipe, "value", layers=1)
    largest = Edit(edit.tensors, replace_info(edit, seed=2**63 - 1))
    largest.save(str(tmp_path / "x"))
    assert Edit.load(str(tmp_path / "x")).info.seed == 2**63 - 1
    with pytest.raises(UserError, match="seed must be greater than or equal to 0, got -1"):
        Edit(edit.tensors, replace_info(edit, seed=-1)).save(tmp_path / "y")


def test_a_name_is_one_line(saved_edits: dict[str, Path], tmp_path: Path) -> None:
    record = json.loads((saved_edits["value"] / "edit.json").read_text())
    record["concepts"][0]["name"] = "neon\n\x1b[31mred" + "x" * 1000
    edit = Edit.load(write_with_checksum(tmp_path, (saved_edits["value"] / "edit.safetensors").read_bytes(), record))
    assert edit.name.startswith("esd (neon [31mredx") and len(edit.name) < 220
    record["versions"]["a\n\x1bb"] = "1"
    with pytest.raises(UserError, match=r"versions\.a \\x1bb"):
        Edit.load(write_with_checksum(tmp_path, (saved_edits["value"] / "edit.safetensors").read_bytes(), record))


def test_texts_of_a_concept_can_be_written() -> None:
    for name in ("x" * 10_001, "caf\udce9"):
        with pytest.raises(UserError, match="valid Unicode of at most 10,000 characters"):
            Concept(name=name)


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_the_same_edit_gives_the_same_bytes(kind: str, model: StableDiffusion, saved_edits: dict[str, Path], tmp_path: Path) -> None:
    edit = Edit.load(saved_edits[kind])
    edit.save(tmp_path)
    for name in ("edit.json", "edit.safetensors"):
        assert (tmp_path / name).read_bytes() == (saved_edits[kind] / name).read_bytes()
    with apply_edits(model, [edit]):
        pass


def test_one_edit_twice_is_refused(saved_edits: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from app.cli import main

    folder = str(saved_edits["value"])
    assert main(["audit", folder, folder + "/edit.json"]) == 1
    assert "esd (cat 0) is given twice" in capsys.readouterr().err
    assert main(["erase", "--concept", "neon", "--on", folder, folder]) == 1
    assert "esd (cat 0) is given twice" in capsys.readouterr().err
    for strength in ("nan", "inf", "-inf", "11"):
        assert main(["audit", folder, "--strength", strength]) == 1
        assert ("from -10 to 10" if strength == "11" else "--strength must be a finite number") in capsys.readouterr().err
