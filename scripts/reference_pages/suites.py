"""The reference page of a suite's keys, from the types that check a suite file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired, get_args, get_origin, get_type_hints

import yaml
from reference_pages.fields import describe_fields, describe_type, format_table
from typing_extensions import is_typeddict

from eval.records.gates import PAIRED_RATES, RATES, TIERS, Gate
from eval.suites.suite_schema import GridSuiteSchema, PromptListSuiteSchema

FORMATS = {"grid": GridSuiteSchema, "prompt_list": PromptListSuiteSchema}
GATES = "gates.NAME"
KEYS_FILE = Path(__file__).with_name("suite_keys.yaml")


class Key(NamedTuple):
    """What the types do not say of a key."""

    meaning: str
    default: str = ""  # of a key that may be left out
    type: str = ""  # where the type of the file says too little


def load_keys() -> dict[str, Key]:
    return {path: Key(**texts) for path, texts in yaml.safe_load(KEYS_FILE.read_text(encoding="utf-8")).items()}


class Row(NamedTuple):
    """A key of one format."""

    path: str
    type: str
    is_optional: bool


def suites_page() -> list[str]:
    keys, rows_by_format = load_keys(), {name: {row.path: row for row in list_keys(schema)} for name, schema in FORMATS.items()}
    paths = {path for rows in rows_by_format.values() for path in rows}
    if difference := paths ^ set(keys):
        raise ValueError(f"{KEYS_FILE} and the types of a suite file differ in {', '.join(sorted(difference))}")
    table = [
        describe_key(path, key, {name: rows[path] for name, rows in rows_by_format.items() if path in rows}) for path, key in keys.items()
    ]
    gates = describe_fields(Gate, left_out=["name"])  # the key under `gates`
    gate_table = [[f"`{GATES}.{row.name}`", "both", row.type, row.default or "required", row.meaning] for row in gates]
    return [
        "Every key of a suite file, with type, range and default.",
        "How to write one: [write a suite](../guides/write-a-suite.md).",
        "",
        "Unknown keys, values of the wrong type or out of range, duplicated keys and YAML anchors are",
        "refused, all faults in one message. A tier may ask for at most 1,000,000 images of a model.",
        "",
        *format_table(["key", "format", "type", "default", "meaning"], [*table, *gate_table]),
        "",
        "Keys under `aliases` and `attacks` are needed only where those are.",
        "",
        f"- TIERS: {join_code(TIERS)}",
        f"- RATES: {join_code(RATES)}",
        f"- PAIRED_RATES, those with a drop from the base: {join_code(PAIRED_RATES)}",
    ]


def join_code(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def describe_key(path: str, key: Key, row_by_format: dict[str, Row]) -> list[str]:
    """Return the cells of a key.

    Raises:
        ValueError: the file of keys gives a default to a required key, or none to an optional one.
    """
    if any(row.is_optional != bool(key.default) for row in row_by_format.values()):
        raise ValueError(f"{KEYS_FILE}: {path} needs a default if and only if it may be left out")
    formats = "both" if len(row_by_format) == len(FORMATS) else "grid" if "grid" in row_by_format else "list"
    types = dict.fromkeys(row.type for row in row_by_format.values())
    return [f"`{path}`", formats, key.type or " or ".join(types), key.default or "required", key.meaning]


def list_keys(schema: Any, prefix: str = "") -> Iterator[Row]:
    """Yield the keys of a TypedDict, those of nested ones with their path."""
    for name, hint in get_type_hints(schema, include_extras=True).items():
        is_optional = get_origin(hint) is NotRequired
        value = get_args(hint)[0] if is_optional else hint
        path = f"{prefix}{name}"
        inner, slot = nested_schema(value)
        if inner:
            yield from list_keys(inner, f"{path}.{slot}")
        else:
            yield Row(path, describe_type(value), is_optional)


def nested_schema(hint: Any) -> tuple[Any, str]:
    """Return the TypedDict that a value is, or that the values of a mapping are, with the word for their key; None if neither."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if is_typeddict(hint):
        return hint, ""
    arguments = get_args(hint)
    if get_origin(hint) is dict and is_typeddict(arguments[1]):
        return arguments[1], "LABEL." if arguments[0] is str else "TIER."
    return None, ""
