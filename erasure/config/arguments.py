"""Check the arguments of public functions against their type hints with pydantic: a wrong type is a UserError. No torch here."""

import inspect
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from erasure.config.type_words import describe_type, describe_value
from erasure.errors import UserError, unknown_value_error

P = ParamSpec("P")
R = TypeVar("R")
STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)  # neither True nor "3" is a number; a class of ours allows its instances


def check_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function with a check that its arguments fit their type hints; those hinted as Any or float and `**` arguments are not.

    A call with an unknown or a missing argument stays Python's own TypeError.

    Raises:
        UserError: an argument is of another type; the message names it, what is allowed and what was given.
    """
    signature = inspect.signature(function)
    collected = {p.name for p in signature.parameters.values() if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = _hints_of(function)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if hints.get(name, float) is not float and name not in collected:  # a float has a range too: erasure.config.strength
                check_type(name, value, hints[name])
        return function(*args, **kwargs)

    return checked


def check_fields(instance: object) -> None:
    """Check that the fields of a dataclass fit their type hints.

    Raises:
        UserError: as `check_arguments`.
    """
    for name, hint in _hints_of(type(instance)).items():
        check_type(name, getattr(instance, name), hint)


def check_type(name: str, value: object, hint: Any) -> None:
    """Check that a value fits a type hint.

    Raises:
        UserError: it does not.
    """
    try:
        _adapter_of(hint).validate_python(value)
    except ValidationError:
        if get_origin(hint) is Literal:
            raise unknown_value_error(name, value, get_args(hint)) from None
        raise UserError(f"{name} must be {describe_type(hint)}, got {describe_value(value)}.") from None


def _hints_of(thing: Any) -> dict[str, Any]:
    return get_type_hints(thing, include_extras=True)


@cache
def _adapter_of(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=STRICT)
