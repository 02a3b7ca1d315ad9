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

from erasure.config.registry import field_help
from erasure.errors import UserError
from erasure.loading.addresses import check_address

T = TypeVar("T")


def parse(cls: type[T], argv: Sequence[str], command: str) -> T:
    """An instance of a dataclass from flags.

    Raises:
        UserError: a flag that does not exist, a value of the wrong type, a missing required flag.
    """
    for part in argv:
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in part):
            raise UserError(f"{part!r} is not text: it holds a NUL, or bytes that are not UTF-8.")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return sound(tyro.cli(cls, args=list(argv), prog=f"erasure {command}", config=(tyro.conf.FlagCreatePairsOff,)))
    except SystemExit as error:
        if not error.code:
            raise
        raise UserError(f"{one_line(complaint.getvalue())} (see erasure {command} --help).") from None


def sound(options: T) -> T:
    """The options, if every number is one and the model can be: both are told before torch is imported.

    Raises:
        UserError: NaN or an infinite number; a model that is neither here nor could be on the hub.
    """
    for f in dataclasses.fields(options):  # type: ignore[arg-type]  # a dataclass
        value = getattr(options, f.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{f.name.replace('_', '-')} must be a finite number, got {value}.")
    if model := getattr(options, "model", ""):
        check_address(model)
    return options


def one_line(box: str) -> str:
    """tyro's framed complaint as one sentence: its first paragraph, and the flag it thinks was meant."""
    lines = [line.strip(" │") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    text = " ".join(line for line in lines if not set(line) <= {"─"})
    text = re.sub(r"Exceeds the limit \(\d+ digits\).*?increase the limit", "the number has too many digits", text)  # Python's own words
    first = re.split(r"Got errors:|Argument helptext|For full helptext|Perhaps you meant", text)[0]
    meant = re.search(r"Perhaps you meant:?\s+(--[\w-]+)", text)
    bad = re.search(r"could not convert string to (\w+): (\S+)", text)
    reason = f" ({bad[2]} is not a {bad[1]})" if bad else ""
    hint = f"; did you mean {meant[1]}" if meant else nearest(first)
    return " ".join(first.split()).rstrip(". ") + reason + hint


def nearest(complaint: str) -> str:
    """The allowed choice that is closest to a wrong one, as a half sentence; nothing where none is close."""
    wrong = re.search(r"invalid choice '([^']*)'.*?Expected one of \((.*?)\)", " ".join(complaint.split()))
    near = difflib.get_close_matches(wrong[1], re.findall(r"'([^']*)'", wrong[2]), n=1) if wrong else []
    return f"; did you mean {near[0]!r}" if near else ""


def combined(name: str, *classes: type, recipe: Mapping[str, Any] | None = None, note: str = "") -> type:
    """One dataclass with the fields of several, their trailing comments as help; later classes do not override earlier ones.

    Args:
        recipe: values that stand where nothing is given; the help names the class's own default beside them. What it says about the
            first class is only told: those fields are filled in later.
        note: what the help says besides the first class's own words.
    """
    found: dict[str, tuple[str, Any, Any]] = {}
    for cls in classes:
        comments = field_help(cls)
        for f in dataclasses.fields(cls):
            value, said = f.default, comments.get(f.name, "")
            if recipe and f.name in recipe and cls is classes[0]:
                said = f"{said} (the recipe's, where none is given: {short(recipe[f.name])})"
            elif recipe and f.name in recipe and recipe[f.name] != f.default:
                value, said = recipe[f.name], f"{said} (the paper's: {short(f.default)})"
            kind: Any = Annotated[f.type, tyro.conf.arg(help=said)]  # type: ignore[name-defined]  # a type at run time
            default = dataclasses.field(default=value) if value is not dataclasses.MISSING else dataclasses.field()
            found.setdefault(f.name, (f.name, kind, default))
    text = f"{classes[0].__doc__}\n\n{note}".strip()
    return dataclasses.make_dataclass(name, list(found.values()), frozen=True, kw_only=True, namespace={"__doc__": text})


def short(value: object) -> str:
    """A value for one line; long lists by their length."""
    return f"({len(value)} sentences)" if isinstance(value, tuple) and len(value) > 2 else str(value) or "nothing"


def valued(argv: Sequence[str], flag: str, default: str) -> str:
    """The value of a flag before the whole line is parsed; of several the last, which counts."""
    found = default
    for i, part in enumerate(argv):
        if part.startswith(f"{flag}="):
            found = part.partition("=")[2]
        elif part == flag and i + 1 < len(argv):
            found = argv[i + 1]
    return found


def existing(edits: Sequence[Path]) -> None:
    """Complain about a mistyped edit before torch is imported to read it.

    Raises:
        UserError: nothing is there.
    """
    for edit in edits:
        if not os.path.lexists(edit):  # not Path.exists, which raises for a name that is too long
            raise UserError(f"no edit at {edit}: expected edit.safetensors and edit.json there.")


def given(argv: Sequence[str], names: Sequence[str]) -> set[str]:
    """Which of the fields were named on the command line."""
    flags = {part.split("=", 1)[0].removeprefix("--").removeprefix("no-").replace("-", "_") for part in argv if part.startswith("--")}
    return flags & set(names)
