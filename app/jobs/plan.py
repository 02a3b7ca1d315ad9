"""Plans: strict YAML whose lists multiply into jobs. No torch in here."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NotRequired

from pydantic import JsonValue
from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12 on

from erasure.concept import Concept, Kind
from erasure.config.choices import Seed
from erasure.config.outline import METHOD, outline
from erasure.config.registry import names
from erasure.config.strict_yaml import read_yaml
from erasure.config.validation import check, listed
from erasure.config.validation import faults as faults_of
from erasure.errors import UserError, unknown
from erasure.storage.files import folder_exists, read_json, unsealed, write_sealed
from erasure.storage.run import digest, usable
from eval.scoring.gates import Tier

SETTINGS = ("model", "out", "suite", "tier", "seed", "kind", "method", "fields")
MOST = 10_000  # jobs of a plan
ENTRY = ("concept", "kind", "anchor", "prompts", "method", "fields", "seed", "model", "suite", "tier")


class _Concept(TypedDict):
    name: str
    kind: NotRequired[Kind]
    prompts: NotRequired[list[str]]
    anchor: NotRequired[str]
    aliases: NotRequired[list[str]]


class _Job(TypedDict, total=False):
    method: str
    seed: Seed
    model: str
    suite: str
    tier: Tier


class _Fields(TypedDict):
    fields: dict[str, JsonValue]


class _Record(_Job, total=False):
    concepts: list[_Concept]
    edits: list[str]
    fields: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One job as it was asked for: erase, then audit where a suite is named; or the audit of edits that exist."""

    concepts: tuple[Concept, ...] = ()
    edits: tuple[str, ...] = ()  # folders of edits to audit, in place of erasing anything
    method: str = "esd"
    fields: dict[str, Any] = field(default_factory=dict)  # of the method, where they differ from the recipe
    seed: int = 0
    model: str = "pocket"
    suite: str = ""  # none: no audit
    tier: str = "smoke"

    @property
    def name(self) -> str:
        """For people: concepts and method. What tells jobs apart is the hash."""
        if self.edits:
            return f"audit of {' + '.join(Path(e).name for e in self.edits)} · {self.suite}, {self.tier}"
        return f"{'; '.join(c.name for c in self.concepts)} · {self.method}"

    def record(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def folder_name(self) -> str:
        """Readable, and unlike any other job's."""
        said = re.sub(r"[^\w+]+", "-", "+".join(c.name for c in self.concepts))[:40].strip("-")
        return f"{'audit' if self.edits else self.method}-{said + '-' if said else ''}{digest(self.record())[:8]}"

    def save(self, path: Path) -> None:
        """Write the file that `erasure jobs run-one` takes."""
        folder_exists(path.parent)
        write_sealed(path, self.record())

    @classmethod
    def load(cls, path: Path) -> "Spec":
        """Read such a file.

        Raises:
            UserError: no such file, a wrong checksum, unknown keys, values of another type, or values that do not make a concept.
        """
        record = read_json(path)
        if not isinstance(record, dict) or not (record.get("concepts") or record.get("edits")):
            raise UserError(f"{path} is no job: expected a mapping with concepts (or edits), method, fields, seed, model, suite and tier.")
        record = unsealed(path, record, required=False)
        if record.get("edits") and not record.get("suite"):
            raise UserError(f"{path} names edits but no suite to audit them with, so it asks for nothing.")
        check(record, _Record, str(path))
        concepts = tuple(Concept.from_record(c) for c in record.get("concepts", ()))
        return cls(**{**record, "concepts": concepts, "edits": tuple(record.get("edits", ()))})


@dataclass(frozen=True)
class Plan:
    """The jobs of a plan file, in the order of the file, and where their folders go."""

    jobs: tuple[Spec, ...]
    out: Path

    def folder(self, spec: Spec) -> Path:
        return self.out / spec.folder_name


def load_plan(path: Path) -> Plan:
    """Read a plan and multiply its lists.

    Raises:
        UserError: no file, no YAML, a key twice, an unknown key, a value of the wrong shape, or two entries that mean the same job.
    """
    record = read_yaml(path)
    if not isinstance(record, dict) or not isinstance(record.get("jobs"), list) or not record["jobs"]:
        raise UserError(f"{path} must be a mapping with a list under `jobs`, and may set {', '.join(SETTINGS)} for all of them.")
    faults = [str(unknown(f"key in {path}", key, (*SETTINGS, "jobs"))) for key in record if key not in (*SETTINGS, "jobs")]
    out = record.get("out") or str(Path("runs") / path.stem)
    if not isinstance(out, str):
        raise UserError(f"{path}: out must be a folder, got {out!r}.")
    usable(Path(out))
    common = {key: value for key, value in record.items() if key in SETTINGS and key != "out"}
    specs: dict[str, Spec] = {}
    for number, entry in enumerate(record["jobs"], 1):
        where = f"{path}, job {number}"
        try:
            if own := _faults(common, entry, where):
                faults += own
            else:
                _add(specs, entry, common, where)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise listed(faults, str(path))
    return Plan(tuple(specs.values()), Path(out))


def _faults(common: dict[str, Any], entry: Any, where: str) -> list[str]:
    """Wrong keys and values of an entry that show before its lists are multiplied, one sentence each."""
    if not isinstance(entry, dict):
        return [f"{where} must be a mapping such as {{concept: neon, method: esd}}, got {entry!r}."]
    every = {**common, **entry}
    found = [str(unknown(f"key in {where}", key, ENTRY)) for key in entry if key not in ENTRY]
    if not every.get("concept"):
        found.append(f"{where} names no concept.")
    for key in ("method", "seed", "model", "suite", "tier"):
        for value in _list(every[key]) if key in every else ():
            found += faults_of({key: value or "" if key == "suite" else value}, _Job, where)
    methods = [method for method in _list(every.get("method", "esd")) if isinstance(method, str)]
    found += [
        str(unknown(f"method in {where}", method, names("erasure.methods"))) for method in methods if method not in names("erasure.methods")
    ]
    allowed = {
        f.name for method in methods if method in names("erasure.methods") for f in fields(outline("erasure.methods", method, METHOD))
    }
    given = {**_mapping(common, where), **_mapping(entry, where)}
    return found + [str(unknown(f"field in {where}", name, allowed)) for name in given if allowed and name not in allowed]


def _add(specs: dict[str, Spec], entry: Any, common: dict[str, Any], where: str) -> None:
    """The jobs of one entry, by their folders' names."""
    asked = list(expand({**common, **entry, "fields": {**_mapping(common, where), **_mapping(entry, where)}}, where))
    if not asked:
        raise UserError(f"{where} asks for no job: one of its lists is empty.")
    for spec in asked:
        if spec.folder_name in specs:
            raise UserError(f"{where} asks again for a job that stands above it: {spec.name}, seed {spec.seed}.")
        specs[spec.folder_name] = spec
        if len(specs) > MOST:
            raise UserError(f"{where}: a plan may have {MOST:,} jobs; these lists multiply to more. Make several plans of it.")


def expand(entry: dict[str, Any], where: str) -> Iterator[Spec]:
    """Every combination of an entry's lists: concepts x methods x seeds x models x tiers x fields."""
    options = {name: _list(value) for name, value in _mapping(entry, where).items()}
    axes = [_list(entry.get(key, default)) for key, default in (("method", "esd"), ("seed", 0), ("model", "pocket"), ("suite", ""))]
    for concept in _list(entry["concept"]):
        concepts = _concepts(concept, entry, where)
        for method, seed, model, suite, *values in itertools.product(*axes, *options.values()):
            asked = {"method": method, "seed": seed, "model": model, "suite": suite or "", "tier": entry.get("tier", "smoke")}
            check(asked, _Job, where)
            yield Spec(concepts=concepts, fields=dict(zip(options, values, strict=True)), **asked)


def _concepts(value: Any, entry: dict[str, Any], where: str) -> tuple[Concept, ...]:
    """ "a; b" means both in one edit; a mapping sets the fields of one concept."""
    shared = {key: entry[key] for key in ("kind", "anchor", "prompts") if key in entry}
    if isinstance(value, str):
        records = [{**shared, "name": name.strip()} for name in value.split(";")]
    elif isinstance(value, dict):
        records = [{**shared, **value}]
    else:
        raise UserError(f"{where}: a concept is a name or a mapping with a name, got {value!r}.")
    for record in records:
        check(record, _Concept, f"{where}, concept")
    return tuple(Concept.from_record(record) for record in records)


def _mapping(entry: dict[str, Any], where: str) -> dict[str, Any]:
    found = {} if entry.get("fields") is None else entry["fields"]
    if not isinstance(found, dict):
        raise UserError(f"{where}: fields must be a mapping of a method's options, got {found!r}.")
    check({"fields": found}, _Fields, where)
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
