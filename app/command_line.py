"""All commands, and how a line is read into the options of one of them. Nothing here imports torch.

A command is a frozen dataclass of options and a function that runs it. tyro reads a line twice: first only for what decides how the rest is
read, which is the command and, for `erasure erase`, its method, kind and model; then for everything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from operator import or_
from typing import Annotated, Any, Generic, TypeVar

import tyro

from app.commands.audit import AuditCommand, run_audit
from app.commands.clean import CleanCommand, run_clean
from app.commands.demo import DemoCommand, run_demo
from app.commands.doctor import DoctorCommand, run_doctor
from app.commands.erase import EraseCommand, add_method_options, explain_other_methods_flag, other_methods_flag, run_erase
from app.commands.export import ExportCommand, run_export
from app.commands.jobs import JobsCommand, run_jobs
from app.commands.methods import MethodsCommand, run_methods
from app.commands.models import ModelsCommand, run_models
from app.commands.serve import ServeCommand, run_serve
from app.commands.studio import StudioCommand, run_studio
from app.parse_errors import NoCommand, UnknownWords, explain_unknown_words
from app.parsing import PROGRAM, HelpPrinted, Switch, flag_of, is_positional, parse, parse_known, print_help
from erasure.errors import UserError, unknown_value_error

T = TypeVar("T")
DESCRIPTION = (
    "Erase concepts from text-to-image models, and prove what was erased.\n\n"
    "`erasure COMMAND --help` lists the options of a command; `erasure --version` prints the version."
)


@dataclass(frozen=True)
class Command(Generic[T]):
    """A command of the program: its options, what runs it and returns the exit code, and a line about it for the list of commands."""

    options: type[T]
    run: Callable[[T], int]
    summary: str
    computes: bool = False  # whether it runs models, for which the process needs its settings (app.cli.PROCESS_ENVIRONMENT)


COMMANDS: dict[str, Command[Any]] = {
    "erase": Command(EraseCommand, run_erase, "erase concepts from a model and save an edit", computes=True),
    "audit": Command(
        AuditCommand, run_audit, "measure an edit: what it erased and what else it changed; writes report.html", computes=True
    ),
    "export": Command(
        ExportCommand, run_export, "turn an edit into a LoRA file, a diffusers folder or a text encoder, for other programs", computes=True
    ),
    "jobs": Command(JobsCommand, run_jobs, "run plans of many erasures and audits; status and leaderboard", computes=True),
    "studio": Command(StudioCommand, run_studio, "serve the web page: compare, erase, audit, leaderboard", computes=True),
    "serve": Command(ServeCommand, run_serve, "serve a model with edits as an images API, for red-team tools", computes=True),
    "demo": Command(DemoCommand, run_demo, "erase a style from the shipped pocket model, audit it and write a report", computes=True),
    "methods": Command(MethodsCommand, run_methods, "list the erasure methods"),
    "models": Command(ModelsCommand, run_models, "list the supported models, and which graphics card is enough for what"),
    "clean": Command(CleanCommand, run_clean, "show caches, downloads and incomplete runs; --yes removes them"),
    "doctor": Command(DoctorCommand, run_doctor, "show what is installed, which device is used and what is missing"),
}


@dataclass(frozen=True, kw_only=True)
class FirstReading:
    """What decides how the rest of a line is read."""

    command: Annotated[str, tyro.conf.Positional] = ""
    version: Switch = False
    method: str = EraseCommand.method
    kind: str = EraseCommand.kind
    model: str = EraseCommand.model


def parse_command_line(argv: Sequence[str]) -> Any:
    """Return the options of the command that a line names; None where the line asks for help or the version, which is printed.

    Raises:
        UserError: The line does not parse.
    """
    first = read_first(argv)
    if first.version and not first.command:
        print(f"{PROGRAM} {installed_version()}")
        return None
    tree = command_type(first)
    try:
        return parse(tree, argv, first.command if first.command in COMMANDS else "", DESCRIPTION)
    except UnknownWords as error:
        raise explain_unknown(error.words, tree, argv) from None
    except NoCommand:
        print_help(tree, argv, DESCRIPTION)
    except HelpPrinted:
        pass
    return None


def run_command(options: Any) -> int:
    """Run the command with these options, and return its exit code."""
    return command_of(options).run(options)


def command_of(options: Any) -> Command[Any]:
    """Return the command that has these options."""
    return next(command for command in COMMANDS.values() if isinstance(options, command.options))


def read_first(argv: Sequence[str]) -> FirstReading:
    """Return the first reading of a line. The second reading reports what is wrong with it."""
    try:
        return parse_known(FirstReading, argv)
    except UserError:
        return FirstReading()


def command_type(first: FirstReading) -> Any:
    """Return the type of the whole command line: a union of the commands. The one that is read describes itself, the others in one line.

    Raises:
        UserError: The command is `erase`, and there is no such method.
    """
    members = []
    for name, command in COMMANDS.items():
        is_read = name == first.command
        options = add_method_options(first.method, first.kind, first.model) if is_read and name == "erase" else command.options
        members.append(Annotated[options, tyro.conf.subcommand(name, description=None if is_read else command.summary)])
    return reduce(or_, members)


def explain_unknown(words: Sequence[str], tree: Any, argv: Sequence[str]) -> UserError:
    """Return the error for words that nothing takes: an unknown command, an unknown flag, or arguments too many."""
    try:
        options = parse_known(tree, argv)
    except NoCommand as missing:
        kind = "command" if missing.program == PROGRAM else f"action of {missing.program}"
        return unknown_value_error(kind, words[0], missing.names)
    if isinstance(options, EraseCommand) and (flag := other_methods_flag(words, options.method)):
        return explain_other_methods_flag(flag, options.method)
    options = getattr(options, "action", None) or options
    flags = [flag_of(f) for f in fields(options) if not is_positional(f)]
    named = f"{options.words} --method {options.method}" if isinstance(options, EraseCommand) else options.words
    return UserError(f"{explain_unknown_words(options.words, words, flags)} See {PROGRAM} {named} --help.")


def installed_version() -> str:
    try:
        return version("erasure-studio")
    except PackageNotFoundError:
        return "(a checkout that is not installed)"
