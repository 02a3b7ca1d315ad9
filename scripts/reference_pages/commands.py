"""The reference page of the commands, from the command line's own option classes."""

import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib import import_module
from typing import Annotated, get_args, get_origin, get_type_hints

import tyro
from reference_pages.fields import PLAIN_TYPES, FieldRow, describe_fields, format_table

from app.cli import COMMANDS

ACTIONS = {  # command line -> module and class of its options
    "erase": ("erase", "Options"),
    "audit": ("audit", "Options"),
    "audit report": ("audit", "ReportOptions"),
    "audit compare": ("audit", "CompareOptions"),
    "audit images": ("audit", "ImagesOptions"),
    "audit sequence": ("audit_sequence", "Options"),
    "export": ("export", "Options"),
    "jobs run": ("jobs", "RunOptions"),
    "jobs status": ("jobs", "StatusOptions"),
    "jobs leaderboard": ("jobs", "LeaderboardOptions"),
    "jobs run-one": ("jobs", "RunOneOptions"),
    "studio": ("studio", "Options"),
    "demo": ("demo", "Options"),
    "methods": ("methods", "Options"),
    "clean": ("clean", "Options"),
    "doctor": ("doctor", "Options"),
}
EXIT_CODES = {
    "0": "done, or PASS",
    "1": "a mistake in the command; nothing was written",
    "2": "incomplete: the same command continues, or names what is missing",
    "3": "a gate failed, or a rebound was shown",
    "4": "inconclusive",
}


def commands_page() -> list[str]:
    check_complete()
    rows = [[f"[`{name}`](#erasure-{name.replace(' ', '-')})", summary] for name, summary in COMMANDS.items() if name != "jobs"]
    rows.append(["[`jobs`](#erasure-jobs-run)", COMMANDS["jobs"]])
    return [
        "Every command with its options and defaults, and the exit codes. `erasure COMMAND --help` prints the same;",
        "`erasure erase --method NAME --kind KIND --model MODEL --help` adds the options of a method.",
        "",
        *format_table(["command", "what it does"], sorted(rows, key=lambda row: list(COMMANDS).index(row[0][2:].partition("`")[0]))),
        "",
        "## Exit codes",
        "",
        *format_table(["code", "meaning"], [[f"`{code}`", meaning] for code, meaning in EXIT_CODES.items()]),
        *(line for command, (module, name) in ACTIONS.items() for line in describe_command(command, load_options(module, name))),
    ]


def check_complete() -> None:
    """Check that every option class of the command line is on the page.

    Raises:
        ValueError: one is missing.
    """
    listed = {load_options(module, name) for module, name in ACTIONS.values()}
    for module in {f"app.commands.{module}" for module, _ in ACTIONS.values()} | {f"app.commands.{name}" for name in COMMANDS}:
        for name, cls in vars(import_module(module)).items():
            if name.endswith("Options") and is_dataclass(cls) and cls.__module__ == module and cls not in listed:
                raise ValueError(f"{module}.{name} is not among the commands of scripts/reference_pages/commands.py")


def load_options(module: str, name: str) -> type:
    return getattr(import_module(f"app.commands.{module}"), name)


def describe_command(command: str, cls: type) -> Iterator[str]:
    yield from ["", f"## erasure {command}", ""]
    for paragraph in (inspect.getdoc(cls) or "").split("\n\n"):
        yield from [*textwrap.wrap(" ".join(paragraph.split()), 100), ""]
    yield from ["```", usage_of(command, cls), "```"]
    if rows := [option_row(cls, row) for row in describe_fields(cls)]:
        yield from ["", *format_table(["option", "type", "default", "meaning"], rows)]


def option_row(cls: type, row: FieldRow) -> list[str]:
    is_switch = row.type == PLAIN_TYPES[bool]
    kind, default = ("switch", "off") if is_switch else (row.type, row.default or "required")
    return [f"`{flag_of(cls, row.name)}`", kind, default, row.meaning]


def usage_of(command: str, cls: type) -> str:
    words = ["erasure", command]
    rows = describe_fields(cls)
    for row in rows:
        flag = flag_of(cls, row.name)
        if not flag.startswith("-"):
            words.append(f"[{flag}]" if row.default else flag)
        elif not row.default:
            words.append(f"{flag} VALUE")
    return " ".join([*words, *(["[options]"] if any(flag_of(cls, row.name).startswith("-") and row.default for row in rows) else [])])


def flag_of(cls: type, name: str) -> str:
    """Return how an option is written: --name, or NAME for one without a flag."""
    hint = get_type_hints(cls, include_extras=True)[name]
    is_positional = get_origin(hint) is Annotated and tyro.conf.Positional in get_args(hint)[1:]
    return name.upper().replace("_", "-") if is_positional else f"--{name.replace('_', '-')}"
