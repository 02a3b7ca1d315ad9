"""Write eval/report/report.schema.json, the JSON Schema of report.json, from the types in eval.records.report.

    python scripts/write_schema.py

A test fails until it is run after a change of the types.
"""

import json
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue

from erasure.storage.files import write_bytes
from eval.records.report import Report
from eval.report.report_json import SCHEMA


class ClosedSchema(GenerateJsonSchema):
    """A schema of what is written: a record has all of its keys, except those that it may leave out, and no others."""

    def generate(self, schema: Any, mode: JsonSchemaMode = "serialization") -> JsonSchemaValue:
        return {"$schema": self.schema_dialect, **super().generate(schema, mode)}

    def field_is_required(self, field: Any, total: bool) -> bool:
        return field.get("serialization_exclude_if") is None

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # it would repeat the key

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])  # a default is what a missing key means to this project, not a value of the file

    def dataclass_args_schema(self, schema: Any) -> JsonSchemaValue:
        return {**super().dataclass_args_schema(schema), "additionalProperties": False}

    def dict_schema(self, schema: Any) -> JsonSchemaValue:
        mapping = super().dict_schema(schema)
        return {**mapping, "additionalProperties": False} if "patternProperties" in mapping else mapping


def report_schema() -> str:
    """Return the JSON Schema of report.json."""
    schema = TypeAdapter(Report).json_schema(mode="serialization", schema_generator=ClosedSchema)
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_bytes(SCHEMA, report_schema().encode())
