"""Parse command lines with tyro: the types of options, what a number must be, and the way back from options to a command line."""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from app.parse_errors import parse_errors
from erasure.errors import UserError
from erasure.loading.model_source import check_model_source
from erasure.storage.edit_folders import check_edit_exists

T = TypeVar("T")
PROGRAM = "erasure"
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]  # a flag that has no --no- form
REGISTRY = ConstructorRegistry()
# None is the default of some options, and never a value that is typed
CONFIG = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone)


class HelpPrinted(Exception):
    """Help was asked for and is printed, so there is nothing to run."""


def parse(options: type[T], argv: Sequence[str], command: str = "", description: str | None = None) -> T:
    """Parse a command line into one of the dataclasses of a union, or into one dataclass.

    Args:
        command: the command that the line names, where that is known; errors name its --help.
        description: what --help says above the list of commands.

    Raises:
        UserError: The line does not parse: NoCommand, UnknownWords, or what is wrong with an argument.
        HelpPrinted: The line asks for help.
    """
    check_text(argv)
    try:
        with parse_errors(f"{PROGRAM} {command}".strip()):
            return tyro.cli(options, args=argv, prog=PROGRAM, description=description, config=CONFIG, registry=REGISTRY)
    except SystemExit as done:
        raise HelpPrinted from done


def parse_known(options: type[T], argv: Sequence[str]) -> T:
    """Parse what a type has of a command line, and leave the rest, with --help, to another parse.

    Raises:
        UserError: An argument that the type has cannot be used, or no command is named.
    """
    with parse_errors(PROGRAM):
        known, _ = tyro.cli(options, args=argv, prog=PROGRAM, return_unknown_args=True, add_help=False, config=CONFIG, registry=REGISTRY)
    return known


def print_help(options: type, argv: Sequence[str], description: str | None = None) -> None:
    """Print the help of the command that a line names, or of the program.

    Raises:
        UserError: The line does not parse.
    """
    with suppress(HelpPrinted):
        parse(options, [*(word for word in argv if word != "--"), "--help"], description=description)


def check_text(argv: Sequence[str]) -> None:
    """Check that a command line is text.

    Raises:
        UserError: An argument holds a NUL, or bytes that are not UTF-8.
    """
    for argument in argv:
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in argument):
            raise UserError(f"{argument!r} is not text: it contains a NUL, or bytes that are not UTF-8.")


def make_spec(type_: type[T], metavar: str, read: Callable[[str], T]) -> PrimitiveConstructorSpec[T]:
    """Return how tyro reads a value from one argument; the ValueError of `read` completes a sentence that begins with the flag."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: isinstance(value, type_),
        str_from_instance=lambda value: [str(value)],
    )


@REGISTRY.primitive_rule
def read_number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read int and float with messages of our own; a float must be finite."""
    if info.type is int:
        return make_spec(int, "INT", read_int)
    return make_spec(float, "FLOAT", read_float) if info.type is float else None


@REGISTRY.primitive_rule
def read_optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read `T | None` as T is read. tyro's own rule would report every type that it tried."""
    types = [member for member in get_args(info.type) if member is not NoneType]
    if info.type_origin not in (Union, UnionType) or len(types) != 1 or get_origin(info.type) is None:
        return None
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(types[0], info.markers))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None
    is_instance, to_words = spec.is_instance, spec.str_from_instance
    return replace(
        spec,
        is_instance=lambda value: value is None or is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else to_words(value),
    )


def read_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        problem = "has too many digits" if text.lstrip("+-").isdecimal() else "must be a whole number"
        raise ValueError(f"{problem}, got {text!r}") from None


def read_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"must be a number, got {text!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"must be a finite number, got {text!r}")
    return value


def read_model_source(text: str) -> str:
    """Return the name of a model, checked before torch is imported; empty where the edit says which."""
    if text:
        try:
            check_model_source(text)
        except UserError as error:
            raise ValueError(f"names no model: {error}") from error
    return text


ModelSource = Annotated[str, make_spec(str, "STR", read_model_source)]  # pocket, pocket-flow, a hub id, a folder or one .safetensors file


def to_argv(options: Any) -> list[str]:
    """Return the command line, without the command, that parses to these options: the flags that differ from their defaults.

    Positional arguments come last, behind "--", so that no name is taken for a flag or an action.
    """
    flags: list[str] = []
    positional: list[str] = []
    for f in fields(options):
        value, flag = getattr(options, f.name), flag_of(f)
        if is_positional(f):
            positional += map(str, value)
        elif value == f.default:
            continue
        elif isinstance(value, bool):
            flags.append(flag)
        elif isinstance(value, tuple):
            flags += [flag, *map(str, value)]
        else:
            flags.append(f"{flag}={value}")
    return [*flags, "--", *positional]


def flag_of(field: "dataclasses.Field[Any]") -> str:
    """Return the flag of an option."""
    return f"--{field.name.replace('_', '-')}"


def is_positional(field: "dataclasses.Field[Any]") -> bool:
    """Return whether an option has no flag."""
    return tyro.conf.Positional in getattr(field.type, "__metadata__", ())


def check_edits_exist(edits: Sequence[Path]) -> None:
    """Check that the paths of edits exist, before torch is imported to read them.

    Raises:
        UserError: A path does not exist.
    """
    for edit in edits:
        if not os.path.lexists(edit):  # not Path.exists, which raises for a name that is too long
            check_edit_exists(edit)
