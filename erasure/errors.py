"""UserError and its relatives: the user asked for something that cannot be done, and the message says what can."""

import difflib
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

MAX_VALUE_CHARS = 200  # characters shown of one value
MAX_MESSAGE_CHARS = 2000  # characters shown of a whole message
CUT_MARK_CHARS = 40  # room for the words that mark a cut


class UserError(ValueError):
    """A mistake in the input. The command line prints it as one line and exits with 1.

    The message is one short line whatever the input was: control characters are escaped, and long values are cut in the middle.
    """

    def __str__(self) -> str:
        return to_one_line(super().__str__())


class Unfinished(UserError):
    """Work that stopped for a reason outside the input, such as a full disk or another process in the same folder.

    The same command continues later. The command line prints it as one line and exits with 2.
    """


class UnfitMethodWarning(UserWarning):
    """A method did badly on concepts of this kind where it was measured."""


class IgnoredGateWarning(UserWarning):
    """An adapter that was made for some prompts is applied to every prompt."""


class AssumptionWarning(UserWarning):
    """Something the program had to assume or the user should check. The command line prints it as one line."""

    @classmethod
    def warn(cls, message: str) -> None:
        warnings.warn(message, cls, stacklevel=3)


def unknown_value_error(kind: str, value: object, allowed: Iterable[str]) -> UserError:
    """Return an error that names the value, the nearest allowed value and all allowed values."""
    names = sorted(allowed)
    names_in_lower_case = {name.lower(): name for name in names}
    matches = difflib.get_close_matches(str(value)[:MAX_VALUE_CHARS].lower(), names_in_lower_case, n=1, cutoff=0.65)
    hint = f" Did you mean {names_in_lower_case[matches[0]]!r}?" if matches else ""
    return UserError(f"unknown {kind} {value!r}.{hint} Available: {', '.join(names)}.")


def unreadable_error(path: Path, language: str, error: Exception) -> UserError:
    """Return the error of a file that cannot be read: because there is none, or because of what is in it.

    Args:
        language: what the file should hold, such as "YAML".
    """
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UserError(f"{path} does not exist.")
    if isinstance(error, IsADirectoryError):
        return UserError(f"{path} is a folder; a file in {language} is expected.")
    return UserError(f"{path} cannot be read as {language}: {(str(error) or type(error).__name__).splitlines()[0][:200]}.")


class NotFiniteError(UserError, FloatingPointError):
    """A model computed NaN or Inf.

    An attack that drives a model there has failed. Anywhere else the cause is the precision, the schedule or the weights, which the user
    can change.
    """


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out, on a GPU (torch.OutOfMemoryError) or on a CPU; torch is not imported to find out."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def to_one_line(message: str) -> str:
    """Return a message without line breaks and control characters; long values and long messages are cut in the middle."""
    text = "".join(c if c.isprintable() else " " if c in "\r\n\t" else repr(c)[1:-1] for c in message)
    # a value in quotes; an apostrophe within a word is not a quote
    text = re.sub(r"(?<!\w)(['\"])(?:(?!\1).)*\1(?!\w)", lambda match: truncate_middle(match[0], MAX_VALUE_CHARS), text)
    text = re.sub(rf"\S{{{MAX_VALUE_CHARS},}}", lambda match: truncate_middle(match[0], MAX_VALUE_CHARS), text)
    return truncate_middle(text, MAX_MESSAGE_CHARS)


def truncate_middle(text: str, limit: int) -> str:
    """Return the text, or its beginning and end with the number of characters left out between them; cutting twice changes nothing."""
    if len(text) <= limit + CUT_MARK_CHARS:
        return text
    tail = limit // 4
    return f"{text[: limit - tail]}[... {len(text) - limit:,} more ...]{text[-tail:]}"
