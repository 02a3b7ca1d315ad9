"""Jobs: the spec of one, plans of many, and the files that hold their state."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fuzzing.case import (
    BINARY_BYTES,
    DEEP_JSON,
    HOSTILE_NUMBERS,
    HOSTILE_TEXTS,
    LONG_TEXT,
    Case,
    damage,
    drop_each_key,
    mutate,
    swap_type,
    to_json_bytes,
)
from fuzzing.fixtures import Fixtures

INVALID_FIELDS: tuple[tuple[str, Any], ...] = (
    ("nonsense", 1),
    ("steps", "x"),
    ("steps", 1.5),
    ("lr", float("nan")),
    ("lr", "1e-3"),
    ("lr", float("inf")),
    ("trajectory_steps", 1001),
    ("trajectory_steps", 10**12),
    ("region", "nowhere"),
    ("retain_prompts", "x"),
)
INVALID_ENTRY_VALUES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("concept", (None, "", 3, [], [""], {}, {"name": ""}, {"name": 3}, {"name": "x", "kind": "y"}, ";")),
    ("method", (None, "", "nonsense", 3, {}, "../esd", LONG_TEXT)),
    ("seed", ("x", -1, 2**63, 1.5, None, True, {}, [[0]])),
    ("kind", ("nonsense", 3, ["style"])),
    ("tier", ("nonsense", 3, None)),
    ("suite", ("nonsense", 3, "../pocket", LONG_TEXT)),
    ("model", (3, {}, None, "a\0b")),
    ("fields", ("x", 3, [], {"lr": "x"}, {"nonsense": 1}, {"trajectory_steps": 1001}, {"trajectory_steps": 10**12}, {"lr": float("nan")})),
    ("prompts", ("x", ["no place"], ["{} {}"], 3)),
    ("anchor", (3, ["x"], "neon")),
)


def spec_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    """spec.json files for `jobs run-one`; valid ones run."""
    record = {
        "concepts": [{"name": "neon", "kind": "style", "prompts": [], "anchor": "", "aliases": []}],
        "method": "uce",
        "fields": {},
        "seed": 0,
        "model": str(fixtures.model),
        "suite": "",
        "tier": "smoke",
    }

    def case(name: str, content: object, must_fail: bool = True) -> Case:
        data = content if isinstance(content, bytes) else to_json_bytes(content)
        return Case(f"spec.json, {name}", ("jobs", "run-one", "{in}/job/spec.json"), {"job/spec.json": data}, must_fail)

    fixed = [
        case(name, data)
        for name, data in (("empty", b""), ("deep", DEEP_JSON), ("binary", BINARY_BYTES), ("a list", b"[1]"), ("null", b"null"))
    ]
    fixed += [case(f"without {key}", rest, key == "concepts") for key, rest in drop_each_key(record) if key not in ("model", "method")]
    fixed += [case(f"{key} of another type", {**record, key: swap_type(value, rng)}) for key, value in record.items()]
    fixed += [case(f"seed {value}", {**record, "seed": value}, value not in (0, 10**12)) for value in HOSTILE_NUMBERS]
    fixed += [
        case(f"{key} {text[:20]!r}", {**record, key: text}, key != "suite" or text != "")
        for key in ("method", "model", "suite", "tier")
        for text in HOSTILE_TEXTS
    ]
    fixed += [case(f"a concept named {text[:20]!r}", {**record, "concepts": [{"name": text}]}, not text.strip()) for text in HOSTILE_TEXTS]
    fixed += [case(f"field {key} {value!r}", {**record, "method": "esd", "fields": {key: value}}) for key, value in INVALID_FIELDS]
    fixed += [
        case("no concept", {**record, "concepts": []}),
        case("a duplicate concept", {**record, "concepts": record["concepts"] * 2}, must_fail=False),
        case("an edit that is not there", {"edits": ["{in}/none"], "suite": "pocket"}),
        case("edits and no suite", {"edits": [str(fixtures.edit)]}, must_fail=False),
        case("a suite without the concept", {**record, "suite": "sd"}),
        case("an unknown key", {**record, "nonsense": 1}),
    ]
    rng.shuffle(fixed)
    yield from fixed
    while True:
        yield case("mutated", mutate(record, rng), must_fail=False)


def plan_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    """YAML files for `jobs run --dry-run` and `jobs status`."""
    entry = {"concept": ["neon", "sketch"], "method": "esd", "seed": [0, 1], "fields": {"lr": [1e-4, 2e-4]}}
    plan = {"model": str(fixtures.model), "suite": "pocket", "jobs": [entry]}

    def case(name: str, content: object, must_fail: bool = True, needs_run: bool = False) -> Case:
        """`needs_run`: `jobs run` finds the error, and `jobs status` does not."""
        data = content if isinstance(content, bytes) else yaml.safe_dump(content).encode()
        status = rng.random() < 0.3 and not needs_run
        argv = ("jobs", "status", "{in}/plan.yaml") if status else ("jobs", "run", "{in}/plan.yaml", "--dry-run")
        return Case(f"plan.yaml, {name}", argv, {"plan.yaml": data}, must_fail)

    fixed = [
        case(name, data)
        for name, data in (
            ("empty", b""),
            ("deep", DEEP_JSON),
            ("binary", BINARY_BYTES),
            ("a bomb of anchors", b"a: &a [x,x]\nb: &b [*a,*a]\njobs: [*b]"),
            ("a tag that runs code", b"jobs: !!python/object/apply:os.system ['true']"),
            ("a duplicate key", b"jobs: [{concept: neon}]\njobs: []"),
            ("tabs", b"jobs:\n\t- concept: neon"),
            ("UTF-16", "jobs: [{concept: neon}]".encode("utf-16-le")),
            ("a number of 5,000 digits", b"jobs: [{concept: neon, seed: " + b"9" * 5_000 + b"}]"),
            ("an invalid date", b"jobs: [{concept: 2020-99-99}]"),
            ("a self-reference", b"&a jobs: [*a]"),
        )
    ]
    fixed += [case(f"jobs {value!r}", {**plan, "jobs": value}) for value in (None, [], {}, "x", 3, [None], ["neon"], [[]])]
    fixed += [case(f"unknown key {key[:20]!r}", {**plan, key: 1}) for key in ("job", "", "x y", LONG_TEXT)]
    fixed += [case(f"unknown key of a job {key[:20]!r}", {**plan, "jobs": [{**entry, key: 1}]}) for key in ("concpt", "out", LONG_TEXT)]
    fixed += [
        case(f"{key} {str(value)[:30]!r}", {**plan, "jobs": [{**entry, key: value}]}, True, key in ("method", "suite", "model", "fields"))
        for key, bad_values in INVALID_ENTRY_VALUES
        for value in bad_values
    ]
    fixed += [case(f"out {str(value)[:20]!r}", {**plan, "out": value}, not isinstance(value, str)) for value in (3, ["x"], *HOSTILE_TEXTS)]
    fixed += [case(f"{n:,} steps", {**plan, "jobs": [{**entry, "fields": {"steps": n}}]}, must_fail=False) for n in (10**6, 10**12)]
    fixed += [case("a duplicate job", {**plan, "jobs": [entry, entry]})]
    rng.shuffle(fixed)
    yield from fixed
    while True:
        if rng.random() < 0.7:
            yield case("mutated", mutate(plan, rng), must_fail=False)
        else:
            yield case("damaged", damage(yaml.safe_dump(plan).encode(), rng), must_fail=False)


def claim_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    """Job folders with damaged files, for `jobs status` and `jobs leaderboard`; none must be refused."""
    claim = {"pid": 1, "host": "elsewhere", "started": "0", "phase": "erasing", "total": 5, "started_at": 0.0, "done_before": 0}
    valid_files = {
        "claim.json": to_json_bytes(claim),
        "done.json": (fixtures.job / "done.json").read_bytes(),
        "error.json": to_json_bytes({"error": "it broke", "trace": ""}),
        "spec.json": (fixtures.job / "spec.json").read_bytes(),
        "edit/train.jsonl": b'{"step": 0, "loss": 1.0}\n',
        "edit/job.json": (fixtures.job / "edit" / "job.json").read_bytes(),
        "edit/result.json": (fixtures.job / "edit" / "result.json").read_bytes(),
        "lock": b"",
    }
    bad_contents = (
        b"",
        b"null",
        b"[]",
        b"{}",
        DEEP_JSON,
        BINARY_BYTES,
        b'"x"',
        to_json_bytes({"error": LONG_TEXT}),
        to_json_bytes({"error": 3}),
        to_json_bytes(claim)[:-9],
    )
    fixed = [
        (f"{name}, {data[:20]!r}", {name: data})
        for name in ("claim.json", "done.json", "error.json", "spec.json", "edit/train.jsonl", "edit/result.json")
        for data in bad_contents
    ]
    fixed += [(f"claim.json without {key}", {"claim.json": to_json_bytes(rest)}) for key, rest in drop_each_key(claim)]
    fixed += [
        (f"claim.json, {key} of another type", {"claim.json": to_json_bytes({**claim, key: swap_type(v, rng)})}) for key, v in claim.items()
    ]
    rng.shuffle(fixed)
    for name, files in fixed:
        yield two_jobs_case(fixtures, name, files, rng)
    while True:
        name = rng.choice(["claim.json", "done.json", "error.json", "spec.json", "edit/train.jsonl"])
        yield two_jobs_case(fixtures, f"{name}, damaged", {name: damage(valid_files[name], rng)}, rng)


def two_jobs_case(fixtures: Fixtures, name: str, files: dict[str, bytes], rng: random.Random) -> Case:
    """A folder of two jobs, one of which has these files."""
    argv = rng.choice([("jobs", "status", "{in}/runs"), ("jobs", "leaderboard", "{in}/runs", "--out", "{out}/b")])
    removed = {"done.json"} if any("claim" in file or "error" in file for file in files) else set()
    inputs: dict[str, bytes | Path] = {
        f"runs/one/{path.relative_to(fixtures.job)}": path
        for path in sorted(fixtures.job.rglob("*"))
        if path.is_file() and path.name not in removed
    }
    inputs |= {f"runs/two/{path.name}": path for path in fixtures.job.iterdir() if path.is_file()}
    inputs |= {f"runs/one/{file}": data for file, data in files.items()}
    return Case(f"{name}, {' '.join(argv[:2])}", argv, inputs, must_fail=False)
