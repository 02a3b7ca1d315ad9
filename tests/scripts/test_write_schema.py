"""The schema of report.json is what the types say, and it refuses what they do not have."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from eval.records.convert import to_record
from eval.records.gates import Gate
from eval.records.rates import RateName
from eval.report.report_json import SCHEMA, make_report
from eval.scoring.rates import counted_rate
from scripts.write_schema import report_schema
from tests.eval.factories import audit_counts, audit_result


def report() -> dict[str, Any]:
    counts = audit_counts({RateName.UA: counted_rate(3, 4)})
    return to_record(make_report(audit_result(counts), [Gate(name="erased", rate=RateName.UA, at_least=0.9)]))


def test_the_committed_schema_is_the_generated_one() -> None:
    message = "the types of the report changed: run python scripts/write_schema.py, and raise schema_version if a reader can notice"
    assert SCHEMA.read_text(encoding="utf-8") == report_schema(), message


def test_the_schema_is_valid_and_a_report_follows_it() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(report(), schema)


@pytest.mark.parametrize(
    "changed",
    [
        {"verdict": {"state": "PASSED", "summary": "", "reasons": []}},
        {"verdict": {"state": "PASS"}},
        {"nonsense": 1},
        {"rates": [{**report()["rates"][0], "retraned-1": report()["rates"][0]["erased"]}]},
        {"gates": [{**report()["gates"][0], "n": -1}]},
        {"clip_alignment": {"orased": report()["clip_alignment"]["erased"]}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_the_schema_refuses_other_keys_and_values(changed: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**report(), **changed}, json.loads(SCHEMA.read_text(encoding="utf-8")))


@pytest.mark.parametrize("key", sorted(report()))
def test_the_schema_requires_every_key(key: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match=f"'{key}' is a required property"):
        jsonschema.validate(
            {name: value for name, value in report().items() if name != key}, json.loads(Path(SCHEMA).read_text(encoding="utf-8"))
        )
