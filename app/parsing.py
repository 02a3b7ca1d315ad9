"""Parse command lines into dataclasses with tyro; every mistake becomes a one-line message."""

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
    """Parse flags into an instance of a dataclass.

    Raises:
        UserError: A flag does not exist, a value has the wrong type, a required flag is missing, or an argument is not text.
    """
    for argument in argv:
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in argument):
            raise UserError(f"{argument!r} is not text: it contains a NUL, or bytes that are not UTF-8.")
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return check_values(tyro.cli(cls, args=list(argv), prog=f"erasure {command}", config=(tyro.conf.FlagCreatePairsOff,)))
    except SystemExit as error:
        if not error.code:
            raise
        raise UserError(f"{summarize_error(captured.getvalue())} (see erasure {command} --help).") from None


def check_values(options: T) -> T:
    """Return the options after checking numbers and model, before torch is imported.

    Raises:
        UserError: A number is NaN or infinite, or the model is neither a local file nor a possible hub id.
    """
    for f in dataclasses.fields(options):  # type: ignore[arg-type]  # a dataclass
        value = getattr(options, f.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{f.name.replace('_', '-')} must be a finite number, got {value}.")
    if model := getattr(options, "model", ""):
        check_model_source(model)
    return options


def summarize_error(message: str) -> str:
    """Reduce tyro's framed error message to one line: its first paragraph and the flag that it suggests."""
    lines = [line.strip(" │") for line in message.splitlines() if not line.startswith(("╭", "╰"))]
    text = " ".join(line for line in lines if not set(line) <= {"─"})
    text = re.sub(r"Exceeds the limit \(\d+ digits\).*?increase the limit", "the number has too many digits", text)  # Python's own message
    first_paragraph = re.split(r"Got errors:|Argument helptext|For full helptext|Perhaps you meant", text)[0]
    suggested = re.search(r"Perhaps you meant:?\s+(--[\w-]+)", text)
    failed_conversion = re.search(r"could not convert string to (\w+): (\S+)", text)
    reason = f" ({failed_conversion[2]} is not a {failed_conversion[1]})" if failed_conversion else ""
    hint = f"; did you mean {suggested[1]}" if suggested else suggest_choice(first_paragraph)
    return " ".join(first_paragraph.split()).rstrip(". ") + reason + hint


def suggest_choice(message: str) -> str:
    """Return "; did you mean ..." with the allowed choice closest to a wrong one; empty where none is close."""
    match = re.search(r"invalid choice '([^']*)'.*?Expected one of \((.*?)\)", " ".join(message.split()))
    closest = difflib.get_close_matches(match[1], re.findall(r"'([^']*)'", match[2]), n=1) if match else []
    return f"; did you mean {closest[0]!r}" if closest else ""


def combine_options(name: str, *classes: type, recipe: Mapping[str, Any] | None = None, note: str = "") -> type:
    """Merge the fields of several dataclasses into one, with their trailing comments as help. Earlier classes win.

    Args:
        recipe: Defaults that replace those of the classes; the help shows the class's own default beside them. For fields of the
            first class the help only mentions the recipe's value: these fields are filled in later.
        note: Text that the help adds to the first class's docstring.
    """
    merged: dict[str, tuple[str, Any, Any]] = {}
    for cls in classes:
        comments = field_help_of(cls)
        for f in dataclasses.fields(cls):
            value, help_text = f.default, comments.get(f.name, "")
            if recipe and f.name in recipe and cls is classes[0]:
                help_text = f"{help_text} (from the recipe if not given: {abbreviate(recipe[f.name])})"
            elif recipe and f.name in recipe and recipe[f.name] != f.default:
                value, help_text = recipe[f.name], f"{help_text} (the paper's: {abbreviate(f.default)})"
            annotation: Any = Annotated[f.type, tyro.conf.arg(help=help_text)]  # type: ignore[name-defined]  # a type at run time
            default = dataclasses.field(default=value) if value is not dataclasses.MISSING else dataclasses.field()
            merged.setdefault(f.name, (f.name, annotation, default))
    docstring = f"{classes[0].__doc__}\n\n{note}".strip()
    return dataclasses.make_dataclass(name, list(merged.values()), frozen=True, kw_only=True, namespace={"__doc__": docstring})


def abbreviate(value: object) -> str:
    """Format a value for one line; a long list by its length."""
    return f"({len(value)} prompts)" if isinstance(value, tuple) and len(value) > 2 else str(value) or "nothing"


def flag_value(argv: Sequence[str], flag: str, default: str) -> str:
    """Return the value of a flag before the whole line is parsed; the last one if it is repeated."""
    value = default
    for i, argument in enumerate(argv):
        if argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
        elif argument == flag and i + 1 < len(argv):
            value = argv[i + 1]
    return value


def check_edits_exist(edits: Sequence[Path]) -> None:
    """Check that the paths of edits exist, before torch is imported to read them.

    Raises:
        UserError: A path does not exist.
    """
    for edit in edits:
        if not os.path.lexists(edit):  # not Path.exists, which raises for a name that is too long
            raise UserError(f"no edit at {edit}: expected edit.safetensors and edit.json there.")


def find_given_fields(argv: Sequence[str], names: Sequence[str]) -> set[str]:
    """Return which of the fields appear on the command line."""
    flags = {
        argument.split("=", 1)[0].removeprefix("--").removeprefix("no-").replace("-", "_") for argument in argv if argument.startswith("--")
    }
    return flags & set(names)
