"""Plans: strict YAML whose lists multiply into jobs. This module does not import torch."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NotRequired

from pydantic import JsonValue
from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12 on

from erasure.concept import Concept, ConceptKind
from erasure.config.choices import Seed
from erasure.config.registry import list_modules
from erasure.config.static_classes import METHOD_BASE, load_static_class
from erasure.config.strict_yaml import read_strict_yaml
from erasure.config.validation import check_mapping, combine_errors, list_errors
from erasure.errors import UserError, unknown_value_error
from erasure.storage.files import ensure_folder, read_json, verify_checksum, write_checksummed_json
from erasure.storage.run import check_output_folder, hash_record
from eval.records.gates import Tier

PLAN_KEYS = ("model", "out", "suite", "tier", "seed", "kind", "method", "fields")
MAX_JOBS = 10_000  # in one plan
JOB_KEYS = ("concept", "kind", "anchor", "prompts", "method", "fields", "seed", "model", "suite", "tier")


class _ConceptRecord(TypedDict):
    name: str
    kind: NotRequired[ConceptKind]
    prompts: NotRequired[list[str]]
    anchor: NotRequired[str]
    aliases: NotRequired[list[str]]


class _JobSettings(TypedDict, total=False):
    method: str
    seed: Seed
    model: str
    suite: str
    tier: Tier


class _FieldsRecord(TypedDict):
    fields: dict[str, JsonValue]


class _SpecRecord(_JobSettings, total=False):
    concepts: list[_ConceptRecord]
    edits: list[str]
    fields: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """The specification of one job: erase, then audit if a suite is named; or audit existing edits."""

    concepts: tuple[Concept, ...] = ()
    edits: tuple[str, ...] = ()  # folders of edits to audit, instead of an erasure
    method: str = "esd"
    fields: dict[str, Any] = field(default_factory=dict)  # of the method, where they differ from the recipe
    seed: int = 0
    model: str = "pocket"
    suite: str = ""  # empty: no audit
    tier: str = "smoke"

    @property
    def name(self) -> str:
        """Concepts and method, for display. Jobs are identified by their hash."""
        if self.edits:
            return f"audit of {' + '.join(Path(e).name for e in self.edits)} · {self.suite}, {self.tier}"
        return f"{'; '.join(c.name for c in self.concepts)} · {self.method}"

    def record(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def folder_name(self) -> str:
        """A readable name that is unique to this job."""
        slug = re.sub(r"[^\w+]+", "-", "+".join(c.name for c in self.concepts))[:40].strip("-")
        return f"{'audit' if self.edits else self.method}-{slug + '-' if slug else ''}{hash_record(self.record())[:8]}"

    def save(self, path: Path) -> None:
        """Write the spec.json that `erasure jobs run-one` reads."""
        ensure_folder(path.parent)
        write_checksummed_json(path, self.record())

    @classmethod
    def load(cls, path: Path) -> "JobSpec":
        """Read a spec.json.

        Raises:
            UserError: The file is missing or damaged, has unknown keys or values of the wrong type, or specifies no job.
        """
        record = read_json(path)
        if not isinstance(record, dict) or not (record.get("concepts") or record.get("edits")):
            raise UserError(
                f"{path} is not a job: expected a mapping with concepts (or edits), method, fields, seed, model, suite and tier."
            )
        record = verify_checksum(path, record, required=False)
        if record.get("edits") and not record.get("suite"):
            raise UserError(f"{path} names edits but no suite to audit them with, so there is nothing to do.")
        check_mapping(record, _SpecRecord, str(path))
        concepts = tuple(Concept.from_dict(c) for c in record.get("concepts", ()))
        return cls(**{**record, "concepts": concepts, "edits": tuple(record.get("edits", ()))})


@dataclass(frozen=True)
class Plan:
    """The jobs of a plan file, in the order of the file, and the folder that holds their folders."""

    jobs: tuple[JobSpec, ...]
    out: Path

    def folder(self, spec: JobSpec) -> Path:
        return self.out / spec.folder_name


def load_plan(path: Path) -> Plan:
    """Read a plan and multiply its lists.

    Raises:
        UserError: The file is missing or not YAML, a key is duplicated or unknown, a value is invalid, or two entries define the same job.
    """
    record = read_strict_yaml(path)
    if not isinstance(record, dict) or not isinstance(record.get("jobs"), list) or not record["jobs"]:
        raise UserError(f"{path} must be a mapping with a list under `jobs`, and may set {', '.join(PLAN_KEYS)} for all of them.")
    errors = [str(unknown_value_error(f"key in {path}", key, (*PLAN_KEYS, "jobs"))) for key in record if key not in (*PLAN_KEYS, "jobs")]
    out = record.get("out") or str(Path("runs") / path.stem)
    if not isinstance(out, str):
        raise UserError(f"{path}: out must be a folder, got {out!r}.")
    check_output_folder(Path(out))
    common = {key: value for key, value in record.items() if key in PLAN_KEYS and key != "out"}
    specs: dict[str, JobSpec] = {}
    for number, entry in enumerate(record["jobs"], 1):
        location = f"{path}, job {number}"
        try:
            if entry_errors := _find_errors(common, entry, location):
                errors += entry_errors
            else:
                _add_jobs(specs, entry, common, location)
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise combine_errors(errors, str(path))
    return Plan(tuple(specs.values()), Path(out))


def _find_errors(common: dict[str, Any], entry: Any, location: str) -> list[str]:
    """Return the errors of an entry that show before its lists are multiplied, one message each."""
    if not isinstance(entry, dict):
        return [f"{location} must be a mapping such as {{concept: neon, method: esd}}, got {entry!r}."]
    merged = {**common, **entry}
    messages = [str(unknown_value_error(f"key in {location}", key, JOB_KEYS)) for key in entry if key not in JOB_KEYS]
    if not merged.get("concept"):
        messages.append(f"{location} names no concept.")
    for key in ("method", "seed", "model", "suite", "tier"):
        for value in _as_list(merged[key]) if key in merged else ():
            messages += list_errors({key: value or "" if key == "suite" else value}, _JobSettings, location)
    methods = [method for method in _as_list(merged.get("method", "esd")) if isinstance(method, str)]
    messages += [
        str(unknown_value_error(f"method in {location}", method, list_modules("erasure.methods")))
        for method in methods
        if method not in list_modules("erasure.methods")
    ]
    allowed = {
        f.name
        for method in methods
        if method in list_modules("erasure.methods")
        for f in fields(load_static_class("erasure.methods", method, METHOD_BASE))
    }
    method_fields = {**_method_fields(common, location), **_method_fields(entry, location)}
    return messages + [
        str(unknown_value_error(f"field in {location}", name, allowed)) for name in method_fields if allowed and name not in allowed
    ]


def _add_jobs(specs: dict[str, JobSpec], entry: Any, common: dict[str, Any], location: str) -> None:
    """Add the jobs of one entry to `specs` by folder name."""
    entry_specs = list(
        expand_entry({**common, **entry, "fields": {**_method_fields(common, location), **_method_fields(entry, location)}}, location)
    )
    if not entry_specs:
        raise UserError(f"{location} defines no job: one of its lists is empty.")
    for spec in entry_specs:
        if spec.folder_name in specs:
            raise UserError(f"{location} repeats a job above it: {spec.name}, seed {spec.seed}.")
        specs[spec.folder_name] = spec
        if len(specs) > MAX_JOBS:
            raise UserError(f"{location}: a plan may have {MAX_JOBS:,} jobs; these lists multiply to more. Split it into several plans.")


def expand_entry(entry: dict[str, Any], location: str) -> Iterator[JobSpec]:
    """Yield every combination of an entry's lists: concepts x methods x seeds x models x suites x fields.

    Raises:
        UserError: A value is invalid.
    """
    field_values = {name: _as_list(value) for name, value in _method_fields(entry, location).items()}
    axes = [_as_list(entry.get(key, default)) for key, default in (("method", "esd"), ("seed", 0), ("model", "pocket"), ("suite", ""))]
    for concept in _as_list(entry["concept"]):
        concepts = _parse_concepts(concept, entry, location)
        for method, seed, model, suite, *values in itertools.product(*axes, *field_values.values()):
            settings = {"method": method, "seed": seed, "model": model, "suite": suite or "", "tier": entry.get("tier", "smoke")}
            check_mapping(settings, _JobSettings, location)
            yield JobSpec(concepts=concepts, fields=dict(zip(field_values, values, strict=True)), **settings)


def _parse_concepts(value: Any, entry: dict[str, Any], location: str) -> tuple[Concept, ...]:
    """Parse concepts: "a; b" erases both in one edit; a mapping sets the fields of one concept."""
    shared = {key: entry[key] for key in ("kind", "anchor", "prompts") if key in entry}
    if isinstance(value, str):
        records = [{**shared, "name": name.strip()} for name in value.split(";")]
    elif isinstance(value, dict):
        records = [{**shared, **value}]
    else:
        raise UserError(f"{location}: a concept is a name or a mapping with a name, got {value!r}.")
    for record in records:
        check_mapping(record, _ConceptRecord, f"{location}, concept")
    return tuple(Concept.from_dict(record) for record in records)


def _method_fields(entry: dict[str, Any], location: str) -> dict[str, Any]:
    mapping = {} if entry.get("fields") is None else entry["fields"]
    if not isinstance(mapping, dict):
        raise UserError(f"{location}: fields must be a mapping of a method's options, got {mapping!r}.")
    check_mapping({"fields": mapping}, _FieldsRecord, location)
    return mapping


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
