"""The one exception that means: the user asked for something that cannot be done, and the message says what can."""

import difflib
import warnings
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the input. The command line prints it as one line and exits with 1."""


class Unfinished(UserError):
    """Work that stopped for a reason outside the input, such as a full disk or another process in the same folder.

    The same command continues later. The command line prints it as one line and exits with 2.
    """


class Assumed(UserWarning):
    """Something that the program had to assume, or that the user should check. The command line prints it as one line."""

    @classmethod
    def warn(cls, message: str) -> None:
        warnings.warn(message, cls, stacklevel=3)


def unknown(what: str, value: object, allowed: Iterable[str]) -> UserError:
    """An error that names the value, the nearest allowed one and all allowed ones."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {what} {value!r}.{hint} Available: {', '.join(names)}.")


class NotFinite(UserError, FloatingPointError):
    """A model computed NaN or Inf. An attack that drives it there has failed; anywhere else the precision, the schedule or the weights
    do not fit, which the user can change."""
