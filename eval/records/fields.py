"""Types of the fields of records: ranges of numbers, and keys that a file may lack. Imports no torch."""

import operator
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

T = TypeVar("T")

Count = Annotated[int, Field(ge=0)]
Proportion = Annotated[float, Field(ge=0, le=1)]
Difference = Annotated[float, Field(ge=-1, le=1)]
FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]
ImagePart = Literal["target", "retained"]
OpenMapping = Mapping[str, Any]  # whose keys belong to a class that anybody may add: a method's fields, a judge's identity


def is_none(value: object) -> bool:
    return value is None


OptionalKey = Annotated[T | None, Field(exclude_if=is_none)]  # a key that the file lacks if the value is None, which is the default
KeyUnlessEmpty = Annotated[T, Field(exclude_if=operator.not_)]  # a key that the file lacks if the value is empty, which is the default
