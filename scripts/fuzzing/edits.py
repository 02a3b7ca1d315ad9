"""Edits whose record or tensors are not what `erasure erase` wrote."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load

from fuzzing.case import BINARY, DEEP, NUMBERS, TEXTS, Case, damaged, encoded, mutated, packed, swapped, without
from fuzzing.ground import Ground

OPEN = {"fields", "notes", "versions", "known", "cost", "format"}  # keys of edit.json that nobody reads strictly today


def edits(ground: Ground, rng: random.Random) -> Iterator[Case]:
    fixed = [*records(ground, rng), *tensors(ground, rng), *uses(ground)]
    rng.shuffle(fixed)
    yield from fixed
    record, bits = json.loads((ground.edit / "edit.json").read_text()), (ground.edit / "edit.safetensors").read_bytes()
    while True:
        if rng.random() < 0.5:
            yield case(ground, "edit.json, mutated", rng, {"edit/edit.json": encoded(mutated(record, rng))}, wrong=False)
        else:
            yield case(ground, "edit.safetensors, damaged", rng, {"edit/edit.safetensors": damaged(bits, rng)}, wrong=False)


def case(ground: Ground, name: str, rng: random.Random, files: dict[str, bytes], wrong: bool = True) -> Case:
    form = rng.choice(["folder", "lora", "edit"])
    argv = ("export", "{in}/edit", "--as", form, "--rank", "2", "--model", str(ground.model), "--out", "{out}/made")
    return Case(f"{name}, export --as {form}", argv, {"edit": ground.edit, **files}, wrong)


def records(ground: Ground, rng: random.Random) -> Iterator[Case]:
    record = json.loads((ground.edit / "edit.json").read_text())

    def changed(name: str, found: object, wrong: bool = True) -> Case:
        return case(ground, f"edit.json, {name}", rng, {"edit/edit.json": found if isinstance(found, bytes) else encoded(found)}, wrong)

    for name, data in (("empty", b""), ("deep", DEEP), ("binary", BINARY), ("null", b"null"), ("a list", b"[]"), ("cut", b'{"method":')):
        yield changed(name, data)
    for key, less in without(record):
        yield changed(f"without {key}", less, wrong=key not in OPEN)
    for key, value in record.items():
        yield changed(f"{key} of another type", {**record, key: swapped(value, rng)}, wrong=key not in OPEN)
    for key in ("source", "fingerprint", "family"):
        yield changed(
            f"base without {key}", {**record, "base": {k: v for k, v in record["base"].items() if k != key}}, key == "fingerprint"
        )
        yield changed(f"base, {key} a list", {**record, "base": {**record["base"], key: ["x"]}})
    for value in NUMBERS:
        yield changed(f"seed {value}", {**record, "seed": value}, wrong=not isinstance(value, int))
        yield changed(f"format {value}", {**record, "format": value})
    for text in TEXTS:
        yield changed(f"a concept named {text[:20]!r}", {**record, "concepts": [{"name": text, "kind": "style"}]}, wrong=not text.strip())
        yield changed(f"method {text[:20]!r}", {**record, "method": text}, wrong=False)
        yield changed(f"product {text[:20]!r}", {**record, "product": text})
    for name, concept in (("no name", {}), ("a kind that is none", {"name": "x", "kind": "y"}), ("a text", "neon"), ("a number", 3)):
        yield changed(f"a concept that is {name}", {**record, "concepts": [concept]})
    yield changed("an unknown key", {**record, "nonsense": 1})
    yield changed("after a text", {**record, "base": {**record["base"], "after": "x"}})
    yield changed("after an edit that is not there", {**record, "base": {**record["base"], "after": ["0" * 16]}})


def tensors(ground: Ground, rng: random.Random) -> Iterator[Case]:
    bits = (ground.edit / "edit.safetensors").read_bytes()
    found = load(bits)
    name, value = next(iter(found.items()))

    def changed(what: str, data: bytes, wrong: bool = True) -> Case:
        return case(ground, f"edit.safetensors, {what}", rng, {"edit/edit.safetensors": data}, wrong)

    for what, data in (("empty", b""), ("binary", BINARY), ("cut", bits[:-1]), ("cut in its header", bits[:40]), ("longer", bits + b"\0")):
        yield changed(what, data)
    yield changed("a header of 2^60 bytes", (2**60).to_bytes(8, "little") + bits[8:])
    for i in range(8):
        at = rng.randrange(len(bits) - 1000, len(bits))
        yield changed(f"bit {i} of byte {at} flipped", bits[:at] + bytes([bits[at] ^ (1 << i)]) + bits[at + 1 :])
    other = (
        ("no tensor", {}),
        ("one less", {key: tensor for key, tensor in found.items() if key != name}),
        ("NaN", {**found, name: value * float("nan")}),
        ("infinite", {**found, name: value + float("inf")}),
        ("another shape", {**found, name: value[:-1].contiguous()}),
        ("no dimension", {**found, name: torch.tensor(1.0, dtype=value.dtype)}),
        ("whole numbers", {**found, name: value.to(torch.int64)}),
        ("a name that the base lacks", {**found, "unet.nothing.weight": value}),
        ("an unknown suffix", {**found, f"{name}::nonsense": value}),
        ("half of a pair of factors", {**found, f"{name}::down": torch.zeros(2, value.shape[1], dtype=value.dtype)}),
        ("a name of no network", {**found, "../../x": value}),
    )
    for what, tensors_ in other:
        yield changed(what, packed(tensors_))


def uses(ground: Ground) -> Iterator[Case]:
    """Ways to name an edit that is sound."""
    files: dict[str, bytes | Path] = {"edit": ground.edit, "plain.txt": b"plain", "other/edit.json": b"{}"}
    model = ("--model", str(ground.model))
    for place in ("{in}/none", "{in}/plain.txt", "{in}/other", "{in}/edit/README.md", "", "{in}", "a\0b", "x" * 9_999):
        yield Case(f"export of {place[:20]!r}", ("export", place, *model, "--out", "{out}/x"), files)
        yield Case(f"audit sequence of {place[:20]!r}", ("audit", "sequence", place, *model, "--out", "{out}/x"), files)
        on = ("erase", "--method", "uce", "--concept", "sketch", *model, "--on", place, "--out", "{out}/x")
        yield Case(f"erase --on {place[:20]!r}", on, files)
    twice = ("audit", "{in}/edit", "{in}/edit", *model, "--tier", "smoke", "--out", "{out}/x")
    yield Case("audit of one edit twice", twice, files)
    yield replace(Case("audit sequence of one edit twice", twice, files), argv=("audit", "sequence", *twice[1:]))
    for form in ("folder", "edit", "lora", "text-encoder"):
        yield Case(f"export --as {form} into a file", ("export", "{in}/edit", *model, "--as", form, "--out", "{in}/plain.txt/x"), files)
