"""Command lines from dataclasses through tyro; every mistake becomes one line."""

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import tyro

from erasure.discover import field_help
from erasure.errors import UserError

T = TypeVar("T")


def parse(cls: type[T], argv: Sequence[str], command: str) -> T:
    """An instance of a dataclass from flags.

    Raises:
        UserError: a flag that does not exist, a value of the wrong type, a missing required flag.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(cls, args=list(argv), prog=f"erasure {command}", config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as error:
        if not error.code:
            raise
        raise UserError(f"{one_line(complaint.getvalue())} (see erasure {command} --help).") from None


def one_line(box: str) -> str:
    """tyro's framed complaint as one sentence: its first paragraph, and the flag it thinks was meant."""
    lines = [line.strip(" │") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    text = " ".join(line for line in lines if not set(line) <= {"─"})
    first = re.split(r"Got errors:|Argument helptext|For full helptext|Perhaps you meant", text)[0]
    meant = re.search(r"Perhaps you meant:?\s+(--[\w-]+)", text)
    bad = re.search(r"could not convert string to (\w+): (\S+)", text)
    reason = f" ({bad[2]} is no {bad[1]})" if bad else ""
    hint = f"; did you mean {meant[1]}" if meant else nearest(first)
    return " ".join(first.split()).rstrip(". ") + reason + hint


def nearest(complaint: str) -> str:
    """The allowed choice that is closest to a wrong one, as a half sentence; nothing where none is close."""
    wrong = re.search(r"invalid choice '([^']*)'.*?Expected one of \((.*?)\)", " ".join(complaint.split()))
    near = difflib.get_close_matches(wrong[1], re.findall(r"'([^']*)'", wrong[2]), n=1) if wrong else []
    return f"; did you mean {near[0]!r}" if near else ""


def combined(name: str, *classes: type) -> type:
    """One dataclass with the fields of several, their trailing comments as help; later classes do not override earlier ones."""
    fields: dict[str, tuple[str, Any, Any]] = {}
    for cls in classes:
        comments = field_help(cls)
        for f in dataclasses.fields(cls):
            kind: Any = Annotated[f.type, tyro.conf.arg(help=comments.get(f.name, ""))]  # type: ignore[name-defined]  # a type at run time
            default = dataclasses.field(default=f.default) if f.default is not dataclasses.MISSING else dataclasses.field()
            fields.setdefault(f.name, (f.name, kind, default))
    return dataclasses.make_dataclass(name, list(fields.values()), frozen=True, kw_only=True, namespace={"__doc__": classes[0].__doc__})


def given(argv: Sequence[str], names: Sequence[str]) -> set[str]:
    """Which of the fields were named on the command line."""
    flags = {part.split("=", 1)[0].removeprefix("--").removeprefix("no-").replace("-", "_") for part in argv if part.startswith("--")}
    return flags & set(names)
