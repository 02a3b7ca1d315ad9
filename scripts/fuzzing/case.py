"""A hostile input, and the values and mutations for building such inputs."""

import copy
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

LONG_TEXT = "x" * 100_000
HOSTILE_TEXTS = (
    "",
    " ",
    "a\0b",
    "a\nb",
    "\x1b[31mred",
    "../../../escaped",
    "/",
    "~nobody/x",
    "a" * 300,
    LONG_TEXT,
    "№ 🙂 ١",
    "'; --",
    "{}",
    "%s%n",
    "-1",
    "nan",
)
HOSTILE_NUMBERS = (-1, 0, 10**12, 2**63, -(2**63), 10**30, 1e308, -0.5, float("nan"), float("inf"))
DEEP_JSON = b"[" * 100_000
BINARY_BYTES = bytes(range(256)) * 8


@dataclass(frozen=True)
class Case:
    """A command and the files that it reads.

    `{in}` and `{out}` in `argv` are placeholders for the folder of these files and for an empty folder that the command may write to.
    """

    name: str
    argv: tuple[str, ...]
    files: Mapping[str, bytes | Path] = field(default_factory=dict)  # by path below {in}; a Path is copied from there
    must_fail: bool = True  # whether it must be refused; if not, both outcomes are fine as long as nothing breaks
    own_process: bool = False  # run it in its own process


def swap_type(value: Any, rng: random.Random) -> Any:
    """Return a value of another JSON type."""
    others: list[Any] = [None, True, 7, 0.5, "text", [], ["a", 1], {}, {"a": {"b": []}}]
    return rng.choice([other for other in others if json_type(other) != json_type(value)])


def json_type(value: Any) -> str:
    """Return the JSON type of a value; integers and floats are one type."""
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def hostile_value(rng: random.Random) -> Any:
    """Return an unexpected value."""
    return rng.choice([*HOSTILE_TEXTS[:-2], *HOSTILE_NUMBERS, None, True, [], {}, [[[]]], {"a": None}, ["x"] * 1000])


def mutate(record: Any, rng: random.Random) -> Any:
    """Return a copy of a JSON value in which one entry at any depth is deleted, duplicated, swapped for another type or made hostile."""
    result = copy.deepcopy(record)
    node: Any = {"": result}
    key: Any = ""
    while isinstance(node[key], dict | list) and node[key] and (key == "" or rng.random() < 0.7):
        node = node[key]
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
    match rng.randrange(4):
        case 0 if isinstance(node, dict):
            del node[key]
        case 1 if isinstance(node, dict):
            node[str(rng.choice(HOSTILE_TEXTS))[:300]] = node[key]
        case 2:
            node[key] = swap_type(node[key], rng)
        case _:
            node[key] = hostile_value(rng)
    return result


def drop_each_key(record: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each key and the mapping without it."""
    for name in record:
        yield name, {key: value for key, value in record.items() if key != name}


def to_json_bytes(record: Any) -> bytes:
    return json.dumps(record).encode()


def to_safetensors(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return the bytes of a safetensors file; tensors that share memory are copied."""
    return save({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, metadata=metadata)


def damage(data: bytes, rng: random.Random) -> bytes:
    """Return bytes that are truncated, or have some bytes overwritten, inserted or removed."""
    position, noise = rng.randrange(len(data)), rng.randbytes(rng.randint(1, 64))
    match rng.randrange(4):
        case 0:
            return data[:position]
        case 1:
            return data[:position] + noise + data[position + len(noise) :]
        case 2:
            return data[:position] + noise + data[position:]
        case _:
            return data[:position] + data[position + len(noise) :]
