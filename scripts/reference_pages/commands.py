"""The reference page of the commands, from the command line's own option classes."""

import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from reference_pages.fields import PLAIN_TYPES, FieldRow, describe_fields, format_table

from app.command_line import COMMANDS
from app.parsing import PROGRAM, flag_of, is_positional

ACTION = "action"  # the field of a command that holds one of its actions
EXIT_CODES = {
    "0": "done, or PASS",
    "1": "a mistake in the command; nothing was written",
    "2": "incomplete: the same command continues, or names what is missing; of `export`: the file is written, but the LoRA loses more of "
    "the edit than the bound; of `doctor`: a judge is broken",
    "3": "a gate failed, or a rebound was shown",
    "4": "inconclusive",
}


def commands_page() -> list[str]:
    classes = list_option_classes()
    sections = {words.split(" ")[0]: anchor_of(words) for words in reversed([cls.words for cls in classes])}
    rows = [[f"[`{name}`](#{sections[name]})", command.summary] for name, command in COMMANDS.items()]
    return [
        "Every command with its options and defaults, and the exit codes. `erasure COMMAND --help` prints the same;",
        "`erasure erase --method NAME --kind KIND --model MODEL --help` adds the options of a method.",
        "",
        *format_table(["command", "what it does"], rows),
        "",
        "## Exit codes",
        "",
        *format_table(["code", "meaning"], [[f"`{code}`", meaning] for code, meaning in EXIT_CODES.items()]),
        *(line for cls in classes for line in describe_command(cls)),
    ]


def list_option_classes() -> list[Any]:
    """Return the option classes of all commands and of their actions, in the order of the command line."""
    classes = []
    for command in COMMANDS.values():
        actions = list_dataclasses(get_type_hints(command.options).get(ACTION))
        if [field.name for field in fields(command.options)] != [ACTION]:  # it can run without an action
            classes.append(command.options)
        classes += actions
    return classes


def list_dataclasses(annotation: Any) -> list[Any]:
    """Return the dataclasses in a union, with or without annotations, in order."""
    if isinstance(annotation, type) and is_dataclass(annotation):
        return [annotation]
    return [cls for part in get_args(annotation) for cls in list_dataclasses(part)]


def describe_command(cls: Any) -> Iterator[str]:
    yield from ["", f"## {PROGRAM} {cls.words}", ""]
    for paragraph in (inspect.getdoc(cls) or "").split("\n\n"):
        yield from [*textwrap.wrap(" ".join(paragraph.split()), 100), ""]
    names = {field.name: field.name.upper() if is_positional(field) else flag_of(field) for field in fields(cls)}
    rows = describe_fields(cls, left_out=[ACTION])
    yield from ["```", usage_of(cls.words, names, rows), "```"]
    if rows:
        yield from ["", *format_table(["option", "type", "default", "meaning"], [describe_option(names[row.name], row) for row in rows])]


def describe_option(name: str, row: FieldRow) -> list[str]:
    is_switch = row.type == PLAIN_TYPES[bool]
    kind, default = ("switch", "off") if is_switch else (row.type, row.default or "required")
    return [f"`{name}`", kind, default, row.meaning]


def usage_of(words: str, names: dict[str, str], rows: list[FieldRow]) -> str:
    """Return the shape of a command line: what has no flag, what is required, and whether there is more."""
    parts = [PROGRAM, words]
    for row in rows:
        name = names[row.name]
        if not name.startswith("-"):
            parts.append(f"[{name}]" if row.default else name)
        elif not row.default:
            parts.append(f"{name} VALUE")
    has_more = any(row.default and names[row.name].startswith("-") for row in rows)
    return " ".join([*parts, *(["[options]"] if has_more else [])])


def anchor_of(words: str) -> str:
    return f"{PROGRAM}-{words.replace(' ', '-')}"
