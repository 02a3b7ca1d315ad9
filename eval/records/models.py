"""Which model of an audit a row or a figure belongs to. Imports no torch."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, PlainSerializer

MODEL_PATTERN = r"^(base|erased|retrained-[0-9]+)$"
RETRAINED_PATTERN = r"^retrained-[0-9]+$"


class ModelRole(Enum):
    """What a model is in an audit."""

    BASE = "base"
    ERASED = "erased"
    RETRAINED = "retrained"


@dataclass(frozen=True)
class AuditedModel:
    """A model of an audit. Its text, `base`, `erased` or `retrained-2`, is a key of files and the name of a folder."""

    role: ModelRole
    number: int = 0  # of a retrained model, from 1 on

    def __str__(self) -> str:
        return f"{self.role.value}-{self.number}" if self.is_retrained else self.role.value

    @property
    def title(self) -> str:
        """The name for a reader."""
        return str(self).replace("-", " ")

    @property
    def is_retrained(self) -> bool:
        return self.role is ModelRole.RETRAINED

    @classmethod
    def parse(cls, text: str) -> "AuditedModel":
        """Return the model with a text that fits MODEL_PATTERN."""
        role, _, number = text.partition("-")
        return cls(ModelRole(role), int(number or 0))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Let a file hold it as its text, as a value or as a key."""
        text = Annotated[str, Field(pattern=MODEL_PATTERN)]
        return handler.generate_schema(Annotated[text, AfterValidator(cls.parse), PlainSerializer(str, return_type=text)])


BASE, ERASED = AuditedModel(ModelRole.BASE), AuditedModel(ModelRole.ERASED)


def retrained_model(number: int) -> AuditedModel:
    """Return the model retrained without the concept that was given as the `number`-th, from 1 on."""
    return AuditedModel(ModelRole.RETRAINED, number)
