"""Command lines from dataclasses through tyro; every mistake becomes one line."""

import contextlib
import dataclasses
import difflib
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from erasure.config.registry import field_help_of
from erasure.errors import UserError
from erasure.loading.model_source import check_model_source

T = TypeVar("T")


def parse_options(cls: type[T], argv: Sequence[str], command: str) -> T:
    """An instance of a dataclass from flags.

    Raises:
        UserError: a flag that does not exist, a value of the wrong type, a missing required flag.
    """
    for argument in argv:
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in argument):
            raise UserError(f"{argument!r} is not text: it holds a NUL, or bytes that are not UTF-8.")
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return check_values(tyro.cli(cls, args=list(argv), prog=f"erasure {command}", config=(tyro.conf.FlagCreatePairsOff,)))
    except SystemExit as error:
        if not error.code:
            raise
        raise UserError(f"{summarize_error(captured.getvalue())} (see erasure {command} --help).") from None


def check_values(options: T) -> T:
    """The options, if every number is one and the model can be: both are told before torch is imported.

    Raises:
        UserError: NaN or an infinite number; a model that is neither here nor could be on the hub.
    """
    for f in dataclasses.fields(options):  # type: ignore[arg-type]  # a dataclass
        value = getattr(options, f.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{f.name.replace('_', '-')} must be a finite number, got {value}.")
    if model := getattr(options, "model", ""):
        check_model_source(model)
    return options


def summarize_error(message: str) -> str:
    """tyro's framed complaint as one sentence: its first paragraph, and the flag it thinks was meant."""
    lines = [line.strip(" │") for line in message.splitlines() if not line.startswith(("╭", "╰"))]
    text = " ".join(line for line in lines if not set(line) <= {"─"})
    text = re.sub(r"Exceeds the limit \(\d+ digits\).*?increase the limit", "the number has too many digits", text)  # Python's own words
    first_paragraph = re.split(r"Got errors:|Argument helptext|For full helptext|Perhaps you meant", text)[0]
    suggested = re.search(r"Perhaps you meant:?\s+(--[\w-]+)", text)
    failed_conversion = re.search(r"could not convert string to (\w+): (\S+)", text)
    reason = f" ({failed_conversion[2]} is not a {failed_conversion[1]})" if failed_conversion else ""
    hint = f"; did you mean {suggested[1]}" if suggested else suggest_choice(first_paragraph)
    return " ".join(first_paragraph.split()).rstrip(". ") + reason + hint


def suggest_choice(message: str) -> str:
    """The allowed choice that is closest to a wrong one, as a half sentence; nothing where none is close."""
    match = re.search(r"invalid choice '([^']*)'.*?Expected one of \((.*?)\)", " ".join(message.split()))
    closest = difflib.get_close_matches(match[1], re.findall(r"'([^']*)'", match[2]), n=1) if match else []
    return f"; did you mean {closest[0]!r}" if closest else ""


def combine_options(name: str, *classes: type, recipe: Mapping[str, Any] | None = None, note: str = "") -> type:
    """One dataclass with the fields of several, their trailing comments as help; later classes do not override earlier ones.

    Args:
        recipe: values that stand where nothing is given; the help names the class's own default beside them. What it says about the
            first class is only told: those fields are filled in later.
        note: what the help says besides the first class's own words.
    """
    merged: dict[str, tuple[str, Any, Any]] = {}
    for cls in classes:
        comments = field_help_of(cls)
        for f in dataclasses.fields(cls):
            value, help_text = f.default, comments.get(f.name, "")
            if recipe and f.name in recipe and cls is classes[0]:
                help_text = f"{help_text} (the recipe's, where none is given: {abbreviate(recipe[f.name])})"
            elif recipe and f.name in recipe and recipe[f.name] != f.default:
                value, help_text = recipe[f.name], f"{help_text} (the paper's: {abbreviate(f.default)})"
            annotation: Any = Annotated[f.type, tyro.conf.arg(help=help_text)]  # type: ignore[name-defined]  # a type at run time
            default = dataclasses.field(default=value) if value is not dataclasses.MISSING else dataclasses.field()
            merged.setdefault(f.name, (f.name, annotation, default))
    docstring = f"{classes[0].__doc__}\n\n{note}".strip()
    return dataclasses.make_dataclass(name, list(merged.values()), frozen=True, kw_only=True, namespace={"__doc__": docstring})


def abbreviate(value: object) -> str:
    """A value for one line; long lists by their length."""
    return f"({len(value)} sentences)" if isinstance(value, tuple) and len(value) > 2 else str(value) or "nothing"


def flag_value(argv: Sequence[str], flag: str, default: str) -> str:
    """The value of a flag before the whole line is parsed; of several the last, which counts."""
    value = default
    for i, argument in enumerate(argv):
        if argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
        elif argument == flag and i + 1 < len(argv):
            value = argv[i + 1]
    return value


def check_edits_exist(edits: Sequence[Path]) -> None:
    """Complain about a mistyped edit before torch is imported to read it.

    Raises:
        UserError: nothing is there.
    """
    for edit in edits:
        if not os.path.lexists(edit):  # not Path.exists, which raises for a name that is too long
            raise UserError(f"no edit at {edit}: expected edit.safetensors and edit.json there.")


def find_given_fields(argv: Sequence[str], names: Sequence[str]) -> set[str]:
    """Which of the fields were named on the command line."""
    flags = {
        argument.split("=", 1)[0].removeprefix("--").removeprefix("no-").replace("-", "_") for argument in argv if argument.startswith("--")
    }
    return flags & set(names)
