"""Types of the fields of records: ranges of numbers, and what a file leaves out or writes in another form. Imports no torch."""

import operator
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Discriminator, Field, GetCoreSchemaHandler, PlainSerializer, Tag

from eval.stats.intervals import Interval

T = TypeVar("T")

Count = Annotated[int, Field(ge=0)]
Proportion = Annotated[float, Field(ge=0, le=1)]
Difference = Annotated[float, Field(ge=-1, le=1)]
FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]
Role = Literal["grid", "prompt_list", "named", "described", "perturbed", "replayed", "neighbor", "benign"]  # of a prompt: what it tests
ImagePart = Literal["target", "retained"]
OpenMapping = Mapping[str, Any]  # whose keys belong to a class that anybody may add: a method's fields, a judge's identity


def key_unless(default: object) -> Any:
    """Return the marker of a field whose key a file lacks if it has this value, which is also its default."""
    return Field(exclude_if=partial(operator.eq, default))


def _without_null(schema: dict[str, Any]) -> None:
    """Leave null out of the JSON schema: where it would be, the key is missing."""
    (schema_of_value,) = [choice for choice in schema.pop("anyOf") if choice != {"type": "null"}]
    schema.update(schema_of_value)


OptionalKey = Annotated[T | None, Field(exclude_if=partial(operator.is_, None), json_schema_extra=_without_null)]
KeyUnlessEmpty = Annotated[T, Field(exclude_if=operator.not_)]


def _to_none(_: object) -> None:
    return None


def _to_empty_mapping(_: object) -> dict[str, Any]:
    return {}


def _is_filled(value: object) -> str:
    return "[empty]" if value is None or value == {} else "[filled]"


class _EmptyMapping:
    """Writes None as {} and reads it back."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        empty = Annotated[dict[str, Any], Field(max_length=0)]
        return handler.generate_schema(Annotated[empty, AfterValidator(_to_none), PlainSerializer(_to_empty_mapping, return_type=empty)])


EmptyIfNone = Annotated[Annotated[T, Tag("[filled]")] | Annotated[None, _EmptyMapping, Tag("[empty]")], Discriminator(_is_filled)]


def _to_interval(values: list[float]) -> Interval:
    return Interval(*values)


class _IntervalList:
    """Writes an interval as [estimate, low, high]."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        bounds = Annotated[list[FiniteNumber], Field(min_length=3, max_length=3)]
        return handler.generate_schema(Annotated[bounds, AfterValidator(_to_interval), PlainSerializer(list, return_type=bounds)])


IntervalList = Annotated[Interval, _IntervalList]
