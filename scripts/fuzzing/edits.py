"""Edits with a changed record or changed tensors."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load

from fuzzing.case import (
    BINARY_BYTES,
    DEEP_JSON,
    HOSTILE_NUMBERS,
    HOSTILE_TEXTS,
    Case,
    damage,
    drop_each_key,
    mutate,
    swap_type,
    to_json_bytes,
    to_safetensors,
)
from fuzzing.fixtures import Fixtures

LENIENT_KEYS = {"fields", "notes", "versions", "concept_checks", "cost", "format"}  # keys of edit.json that are not checked strictly


def edit_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    fixed = [*record_cases(fixtures, rng), *tensor_cases(fixtures, rng), *path_cases(fixtures)]
    rng.shuffle(fixed)
    yield from fixed
    record, tensor_bytes = json.loads((fixtures.edit / "edit.json").read_text()), (fixtures.edit / "edit.safetensors").read_bytes()
    while True:
        if rng.random() < 0.5:
            yield make_case(fixtures, "edit.json, mutated", rng, {"edit/edit.json": to_json_bytes(mutate(record, rng))}, must_fail=False)
        else:
            yield make_case(
                fixtures, "edit.safetensors, damaged", rng, {"edit/edit.safetensors": damage(tensor_bytes, rng)}, must_fail=False
            )


def make_case(fixtures: Fixtures, name: str, rng: random.Random, files: dict[str, bytes], must_fail: bool = True) -> Case:
    format = rng.choice(["folder", "lora", "edit"])
    argv = ("export", "{in}/edit", "--format", format, "--rank", "2", "--model", str(fixtures.model), "--out", "{out}/made")
    return Case(f"{name}, export --format {format}", argv, {"edit": fixtures.edit, **files}, must_fail)


def record_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    record = json.loads((fixtures.edit / "edit.json").read_text())

    def changed_case(name: str, content: object, must_fail: bool = True) -> Case:
        return make_case(
            fixtures,
            f"edit.json, {name}",
            rng,
            {"edit/edit.json": content if isinstance(content, bytes) else to_json_bytes(content)},
            must_fail,
        )

    for name, data in (
        ("empty", b""),
        ("deep", DEEP_JSON),
        ("binary", BINARY_BYTES),
        ("null", b"null"),
        ("a list", b"[]"),
        ("cut", b'{"method":'),
    ):
        yield changed_case(name, data)
    for key, rest in drop_each_key(record):
        yield changed_case(f"without {key}", rest, must_fail=key not in LENIENT_KEYS)
    for key, value in record.items():
        yield changed_case(f"{key} of another type", {**record, key: swap_type(value, rng)}, must_fail=key not in LENIENT_KEYS)
    for key in ("source", "fingerprint", "family"):
        yield changed_case(
            f"base without {key}", {**record, "base": {k: v for k, v in record["base"].items() if k != key}}, key == "fingerprint"
        )
        yield changed_case(f"base, {key} a list", {**record, "base": {**record["base"], key: ["x"]}})
    for value in HOSTILE_NUMBERS:
        yield changed_case(f"seed {value}", {**record, "seed": value}, must_fail=not isinstance(value, int))
        yield changed_case(f"format {value}", {**record, "format": value})
    for text in HOSTILE_TEXTS:
        yield changed_case(
            f"a concept named {text[:20]!r}", {**record, "concepts": [{"name": text, "kind": "style"}]}, must_fail=not text.strip()
        )
        yield changed_case(f"method {text[:20]!r}", {**record, "method": text}, must_fail=False)
        yield changed_case(f"product {text[:20]!r}", {**record, "product": text})
    for name, concept in (("no name", {}), ("an unknown kind", {"name": "x", "kind": "y"}), ("a text", "neon"), ("a number", 3)):
        yield changed_case(f"a concept that is {name}", {**record, "concepts": [concept]})
    yield changed_case("an unknown key", {**record, "nonsense": 1})
    yield changed_case("after a text", {**record, "base": {**record["base"], "after": "x"}})
    yield changed_case("after an edit that is not there", {**record, "base": {**record["base"], "after": ["0" * 16]}})


def tensor_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    tensor_bytes = (fixtures.edit / "edit.safetensors").read_bytes()
    edit_tensors = load(tensor_bytes)
    name, value = next(iter(edit_tensors.items()))

    def changed_case(description: str, data: bytes, must_fail: bool = True) -> Case:
        return make_case(fixtures, f"edit.safetensors, {description}", rng, {"edit/edit.safetensors": data}, must_fail)

    for description, data in (
        ("empty", b""),
        ("binary", BINARY_BYTES),
        ("cut", tensor_bytes[:-1]),
        ("cut in its header", tensor_bytes[:40]),
        ("longer", tensor_bytes + b"\0"),
    ):
        yield changed_case(description, data)
    yield changed_case("a header of 2^60 bytes", (2**60).to_bytes(8, "little") + tensor_bytes[8:])
    for i in range(8):
        position = rng.randrange(len(tensor_bytes) - 1000, len(tensor_bytes))
        yield changed_case(
            f"bit {i} of byte {position} flipped",
            tensor_bytes[:position] + bytes([tensor_bytes[position] ^ (1 << i)]) + tensor_bytes[position + 1 :],
        )
    other = (
        ("no tensor", {}),
        ("one tensor less", {key: tensor for key, tensor in edit_tensors.items() if key != name}),
        ("NaN", {**edit_tensors, name: value * float("nan")}),
        ("infinite", {**edit_tensors, name: value + float("inf")}),
        ("another shape", {**edit_tensors, name: value[:-1].contiguous()}),
        ("no dimension", {**edit_tensors, name: torch.tensor(1.0, dtype=value.dtype)}),
        ("whole numbers", {**edit_tensors, name: value.to(torch.int64)}),
        ("a name that the base lacks", {**edit_tensors, "unet.nothing.weight": value}),
        ("an unknown suffix", {**edit_tensors, f"{name}::nonsense": value}),
        ("half of a pair of factors", {**edit_tensors, f"{name}::down": torch.zeros(2, value.shape[1], dtype=value.dtype)}),
        ("a name of no network", {**edit_tensors, "../../x": value}),
    )
    for description, changed_tensors in other:
        yield changed_case(description, to_safetensors(changed_tensors))


def path_cases(fixtures: Fixtures) -> Iterator[Case]:
    """Invalid paths and arguments for a valid edit."""
    files: dict[str, bytes | Path] = {"edit": fixtures.edit, "plain.txt": b"plain", "other/edit.json": b"{}"}
    model = ("--model", str(fixtures.model))
    for path in ("{in}/none", "{in}/plain.txt", "{in}/other", "{in}/edit/README.md", "", "{in}", "a\0b", "x" * 9_999):
        yield Case(f"export of {path[:20]!r}", ("export", path, *model, "--out", "{out}/x"), files)
        yield Case(f"audit sequence of {path[:20]!r}", ("audit", "sequence", path, *model, "--out", "{out}/x"), files)
        on = ("erase", "--method", "uce", "--concept", "sketch", *model, "--on", path, "--out", "{out}/x")
        yield Case(f"erase --on {path[:20]!r}", on, files)
    duplicate = ("audit", "{in}/edit", "{in}/edit", *model, "--tier", "smoke", "--out", "{out}/x")
    yield Case("audit of a duplicate edit", duplicate, files)
    yield replace(Case("audit sequence of a duplicate edit", duplicate, files), argv=("audit", "sequence", *duplicate[1:]))
    for format in ("folder", "edit", "lora", "text-encoder"):
        yield Case(
            f"export --format {format} into a file", ("export", "{in}/edit", *model, "--format", format, "--out", "{in}/plain.txt/x"), files
        )
