"""The one place that knows why tyro rejects a command line. It becomes a UserError: one line, the value, what is allowed, what to do.

The events come from `tyro._errors`, a private module, so pyproject.toml pins tyro to versions that have it, and a test holds every event
that is read here. An event that is not known here still becomes one line.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import NoReturn

from tyro import _errors
from tyro._arguments import ArgumentDefinition

from erasure.errors import MAX_VALUE_CHARS, UserError, unknown_value_error


class UnknownWords(UserError):
    """Words at the end of which nothing takes them: flags that do not exist, or arguments too many."""

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(f"nothing takes {' '.join(words)!r}.")
        self.words = list(words)


class NoCommand(UserError):
    """No command is named where one must be."""

    def __init__(self, program: str, names: Sequence[str]) -> None:
        super().__init__(f"{program} needs one of {', '.join(names)}.")
        self.program, self.names = program, list(names)


@contextmanager
def parse_errors(program: str) -> Iterator[None]:
    """Raise a UserError for every command line that tyro rejects in this context.

    Args:
        program: the command whose --help to name, for events that do not say which command they are about.
    """

    def reject(event: _errors.ParseErrorEvent) -> None:
        raise_rejection(event, program)

    with _errors.on_parse_error(reject):
        yield


def raise_rejection(event: _errors.ParseErrorEvent, program: str) -> NoReturn:
    """Raise the UserError for one event of tyro."""
    where = event.prog if " " in event.prog else program
    match event:
        case _errors.UnrecognizedArgs():
            raise UnknownWords(event.tokens)
        case _errors.MissingSubcommand():
            raise NoCommand(f"{event.prog} {event.subcommand_spec.prog_suffix}".strip(), list(event.subcommand_spec.parser_from_name))
        case _errors.MissingArgs():
            missing = [argument.arg for argument in event.missing_arguments]
            where = f"{event.prog} {event.missing_arguments[0].source_parser.prog_suffix}".strip()
            message = f"{where.partition(' ')[2]} needs {', '.join(f'{name_of(a)} ({help_of(a)})' for a in missing)}."
            if event.unrecognized_tokens:
                message += f" {explain_unknown_words('It', event.unrecognized_tokens, [name_of(a) for a in missing])}"
        case _errors.InvalidChoice():
            message = str(unknown_value_error(f"value of {name_of(event.argument)}", event.value, event.choices))
        case _errors.BadValue(reason="too_few_values"):
            message = f"{name_of(event.argument)} needs a value: {help_of(event.argument)}."
        case _errors.InstantiationFailure() if event.argument is not None:
            message = f"{name_of(event.argument)} {event.message.rstrip('.')}."
        case _:
            message = f"the arguments cannot be used ({type(event).__name__})."
    raise UserError(f"{message} See {where} --help.")


def explain_unknown_words(subject: str, words: Sequence[str], flags: Sequence[str]) -> str:
    """Return a sentence about words that a command does not take, with the flag that is nearest to the first flag among them."""
    names = {flag.lstrip("-"): flag for flag in flags}
    wrong = next((word.partition("=")[0].lstrip("-") for word in words if word.startswith("-")), "")
    matches = get_close_matches(wrong[:MAX_VALUE_CHARS], names, n=1)
    hint = f" Did you mean {names[matches[0]]}?" if matches else ""
    return f"{subject} does not take {' '.join(words)!r}.{hint}"


def name_of(argument: ArgumentDefinition) -> str:
    """Return how an argument is called on the command line: its flag, or its placeholder."""
    return str(argument.lowered.metavar) if argument.is_positional() else "/".join(argument.lowered.name_or_flags)


def help_of(argument: ArgumentDefinition) -> str:
    """Return the help text of an argument."""
    text = argument.field.helptext
    return (text() if callable(text) else text) or "required"
