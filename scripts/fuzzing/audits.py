"""Files of audits, as `report`, `compare` and the leaderboard read them; and the measured errors of judges."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from erasure.storage.files import CHECKSUM_KEY, read_checksummed_json, with_checksum
from eval.scoring.calibration import CALIBRATION_FOLDER
from fuzzing.case import BINARY_BYTES, DEEP_JSON, HOSTILE_TEXTS, LONG_TEXT, Case, damage, drop_each_key, mutate, swap_type, to_json_bytes
from fuzzing.fixtures import Fixtures

REQUIRED_KEYS = {
    "tier",
    "job",
    "models",
    "axis",
    "targets",
    "judges",
    "attacks",
    "edits",
    "samples_sha256",
}  # keys of result.json without which there is no report

READER_ARGV = {
    "report": ("audit", "report", "{in}/audit"),
    "suite": ("audit", "report", "{in}/audit", "--suite", "{in}/grid.yaml"),
    "compare": ("audit", "compare", "{in}/audit", "{in}/other"),
    "leaderboard": ("jobs", "leaderboard", "{in}", "--out", "{out}/board"),
}
READERS = ("report", "suite", "compare")
MakeCase = Callable[..., Case]  # the nested function `case` of a group
RATES = (("estimate", 0.123), ("low", 1.0), ("high", -0.0), ("k", 10**6), ("n", 10**6), ("n", 0), ("effective", 0.5))


def seal_result(result: Any) -> dict[str, bytes]:
    """Return result.json with the right checksum, so that later checks are reached."""
    return {"result.json": to_json_bytes(with_checksum(result) if isinstance(result, dict) else result)}


def badly_sealed(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Results whose checksum is missing, wrong or malformed."""
    yield "no checksum", result
    yield "changed after it was sealed", {**with_checksum(result), "tier": "full" if result["tier"] != "full" else "smoke"}
    yield "better counts after it was sealed", {**change_ua(result, "estimate", 0.999), CHECKSUM_KEY: with_checksum(result)[CHECKSUM_KEY]}
    for seal in ("", "0" * 64, 0, None, [], True):
        yield f"checksum {seal!r:.9}", {**result, CHECKSUM_KEY: seal}


def change_ua(result: dict[str, Any], key: str, value: float) -> dict[str, Any]:
    """Return a result in which one figure of the erased model's UA is changed."""
    erased = result["models"]["erased"]
    rates = {**erased["rates"], "UA": {**erased["rates"]["UA"], key: value}}
    return {**result, "models": {**result["models"], "erased": {**erased, "rates": rates}}}


def audit_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    """result.json, samples.jsonl, report.json and images of an audit."""
    result = read_checksummed_json(fixtures.audit / "result.json")
    rows = [json.loads(line) for line in (fixtures.audit / "samples.jsonl").read_text().splitlines()]

    def case(name: str, files: dict[str, bytes], must_fail: bool, command: str = "") -> Case:
        reader = command or rng.choice(READERS)
        inputs: dict[str, bytes | Path] = {"audit": fixtures.audit, "other": fixtures.audit, "grid.yaml": fixtures.root / "grid.yaml"}
        return Case(f"{name}, {reader}", READER_ARGV[reader], {**inputs, **{f"audit/{k}": v for k, v in files.items()}}, must_fail)

    fixed = [
        case(f"{file}, {data[:20]!r}", {file: data}, True, command)
        for file, commands in (("result.json", ("report", "suite", "compare")), ("samples.jsonl", ("report", "suite", "compare")))
        for command in commands
        for data in (b"", b"null", b"[]", b"3", b"{}", DEEP_JSON, BINARY_BYTES, b'{"a":')
        if not (file == "samples.jsonl" and data == b"")
    ]
    fixed += [case(f"result.json without {k}", seal_result(rest), k in REQUIRED_KEYS, "report") for k, rest in drop_each_key(result)]
    fixed += [
        case(f"result.json, {k} of another type", seal_result({**result, k: swap_type(v, rng)}), k in REQUIRED_KEYS, "report")
        for k, v in result.items()
    ]
    fixed += [
        case(f"result.json, {name}", {"result.json": to_json_bytes(record)}, True, rng.choice(READERS))
        for name, record in badly_sealed(result)
    ]
    fixed += [case(f"result.json, UA's {k} is {v!r}", seal_result(change_ua(result, k, v)), True, rng.choice(READERS)) for k, v in RATES]
    fixed += [case(f"samples.jsonl, rows without {k}", sample_rows([rest, *rows[1:]]), False) for k, rest in drop_each_key(rows[0])]
    fixed += [
        case(f"samples.jsonl, {k} of another type", sample_rows([{**rows[0], k: swap_type(v, rng)}, *rows[1:]]), False)
        for k, v in rows[0].items()
    ]
    for text in HOSTILE_TEXTS:
        fixed.append(case(f"samples.jsonl, an image {text[:20]!r}", sample_rows([{**rows[0], "image": text}, *rows[1:]]), False))
        fixed.append(case(f"samples.jsonl, a prompt {text[:20]!r}", sample_rows([{**row, "prompt": text} for row in rows]), False))
        other = {**result, "edits": [{**result["edits"][0], "concepts": [{"name": text, "kind": "style"}]}]}
        fixed.append(case(f"result.json, a concept {text[:20]!r}", seal_result(other), False, rng.choice(["report", "leaderboard"])))
    fixed += [
        case(f"an image that is {data[:12]!r}", {f"images/{row['model']}/{Path(row['image']).name}": data}, False, "report")
        for row in rows[:2]
        for data in (b"", BINARY_BYTES, b"\x89PNG\r\n\x1a\n", b"GIF89a")
    ]
    fixed += path_cases(fixtures)
    rng.shuffle(fixed)
    yield from fixed
    while True:
        yield random_audit_case(case, fixtures, result, rows, rng)


def sample_rows(records: list[Any]) -> dict[str, bytes]:
    """Return samples.jsonl with these rows."""
    return {"samples.jsonl": "".join(json.dumps(row) + "\n" for row in records).encode()}


def path_cases(fixtures: Fixtures) -> list[Case]:
    """Paths that name no audit."""
    paths = ("{in}/none", "{in}/grid.yaml", "{in}", "", "a\0b", LONG_TEXT, "{in}/audit/result.json")
    both = {"audit": fixtures.audit, "grid.yaml": fixtures.root / "grid.yaml"}
    cases = [Case(f"report of {path[:20]!r}", ("audit", "report", path), both) for path in paths]
    cases += [Case(f"compare with {path[:20]!r}", ("audit", "compare", "{in}/audit", path), both) for path in paths]
    return cases


def random_audit_case(case: MakeCase, fixtures: Fixtures, result: dict[str, Any], rows: list[Any], rng: random.Random) -> Case:
    """An audit folder in which one file has a random change."""
    match rng.randrange(3):
        case 0:
            return case("result.json, mutated", seal_result(mutate(result, rng)), False)
        case 1:
            index = rng.randrange(len(rows))
            return case("samples.jsonl, mutated", sample_rows([*rows[:index], mutate(rows[index], rng), *rows[index + 1 :]]), False)
        case _:
            name = rng.choice(["result.json", "samples.jsonl", "job.json", "report.json"])
            return case(f"{name}, damaged", {name: damage((fixtures.audit / name).read_bytes(), rng)}, False)


def calibration_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    """Files with the measured errors of a judge."""
    record = json.loads((CALIBRATION_FOLDER / "pocket_style.json").read_text())

    def case(name: str, content: Any, must_fail: bool = True) -> Case:
        judges = {"style": {"judge": "pocket_style", "calibration": "../in/errors.json"}, "object": "pocket_object"}
        suite = yaml.safe_dump({**fixtures.grid_suite(), "judges": judges})
        data = content if isinstance(content, bytes) else to_json_bytes(content)
        argv = ("audit", "{in}/edit", "--suite", "{in}/suite.yaml", "--tier", "smoke", "--out", "{out}/audit")
        files: dict[str, bytes | Path] = {"edit": fixtures.edit, "suite.yaml": suite.encode(), "errors.json": data}
        return Case(f"calibration, {name}", argv, files, must_fail)

    counts = record["labels"]["neon"]
    fixed = [
        case(name, data)
        for name, data in (("empty", b""), ("deep", DEEP_JSON), ("binary", BINARY_BYTES), ("null", b"null"), ("a list", b"[]"))
    ]
    fixed += [case(f"without {k}", rest) for k, rest in drop_each_key(record)]
    fixed += [case(f"{k} of another type", {**record, k: swap_type(v, rng)}, k != "images") for k, v in record.items()]
    fixed += [
        case(f"{k} {v!r}"[:60], {**record, "labels": {**record["labels"], "neon": {**counts, k: v}}})
        for k in counts
        for v in (-1, 1.5, "1", None, True, 10**30 if k.startswith("true") else 0, float("nan"))
    ]
    fixed += [case("of another judge", {**record, "judge": "0" * 16}), case("an unknown key", {**record, "nonsense": 1})]
    rng.shuffle(fixed)
    yield from fixed
    while True:
        yield case("mutated", mutate(record, rng), must_fail=False)
