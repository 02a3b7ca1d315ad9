"""The one exception that means: the user asked for something that cannot be done, and the message says what can."""

import difflib
import re
import warnings
from collections.abc import Iterable

MAX_VALUE_CHARS, MAX_MESSAGE_CHARS, CUT_MARK_CHARS = (
    200,
    2000,
    40,
)  # letters of one value and of a whole message that are shown; what the words of a cut may take


class UserError(ValueError):
    """A mistake in the input. The command line prints it as one line and exits with 1.

    The message is one short line whatever the input was: control characters are escaped, and long values lose their middle.
    """

    def __str__(self) -> str:
        return to_one_line(super().__str__())


class Unfinished(UserError):
    """Work that stopped for a reason outside the input, such as a full disk or another process in the same folder.

    The same command continues later. The command line prints it as one line and exits with 2.
    """


class AssumptionWarning(UserWarning):
    """Something that the program had to assume, or that the user should check. The command line prints it as one line."""

    @classmethod
    def warn(cls, message: str) -> None:
        warnings.warn(message, cls, stacklevel=3)


def unknown_value_error(kind: str, value: object, allowed: Iterable[str]) -> UserError:
    """An error that names the value, the nearest allowed one and all allowed ones."""
    names = sorted(allowed)
    matches = difflib.get_close_matches(str(value)[:MAX_VALUE_CHARS], names, n=1, cutoff=0.4)
    hint = f" Did you mean {matches[0]!r}?" if matches else ""
    return UserError(f"unknown {kind} {value!r}.{hint} Available: {', '.join(names)}.")


class NotFiniteError(UserError, FloatingPointError):
    """A model computed NaN or Inf. An attack that drives it there has failed; anywhere else the precision, the schedule or the weights
    do not fit, which the user can change."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was short, on a GPU (torch.OutOfMemoryError) or not; torch is not imported for the question."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def to_one_line(message: str) -> str:
    """A message without line breaks and control characters, whose longest values and whose whole are cut in the middle."""
    text = "".join(c if c.isprintable() else " " if c in "\r\n\t" else repr(c)[1:-1] for c in message)
    # a value in quotes; an apostrophe within a word opens and closes none
    text = re.sub(r"(?<!\w)(['\"])(?:(?!\1).)*\1(?!\w)", lambda found: truncate_middle(found[0], MAX_VALUE_CHARS), text)
    text = re.sub(rf"\S{{{MAX_VALUE_CHARS},}}", lambda found: truncate_middle(found[0], MAX_VALUE_CHARS), text)
    return truncate_middle(text, MAX_MESSAGE_CHARS)


def truncate_middle(text: str, limit: int) -> str:
    """The text, or its beginning and its end with the number of letters that are left out between them; cut once, it stays so."""
    if len(text) <= limit + CUT_MARK_CHARS:
        return text
    tail = limit // 4
    return f"{text[: limit - tail]}[... {len(text) - limit:,} more ...]{text[-tail:]}"
