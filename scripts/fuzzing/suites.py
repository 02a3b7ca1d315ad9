"""Inputs of an audit: suites of both formats, and prompt lists."""

import json
import random
from collections.abc import Callable, Iterator
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

OPTIONAL_KEYS = {"neighbors", "benign", "attacks", "features", "seeds", "published", "clip"}
LIST_CSV = "case_number,prompt,evaluation_seed,evaluation_guidance\n7,a boat in neon style,5,4\n8,neon lights,6,7.5\n"


INVALID_GATES: tuple[Any, ...] = (
    {"rate": "UA"},
    {"rate": "nonsense", "at_least": 0.5},
    {"rate": "UA", "at_least": 1.5},
    {"rate": "UA", "at_least": float("nan")},
    {"rate": "UA", "at_least": -1},
    {"rate": "UA", "at_least": "0.5"},
    {"rate": "UA", "at_least": 0.5, "drop_at_most": 0.1},
    {"rate": "UA", "at_least": 0.5, "nonsense": 1},
    None,
    3,
    [],
)
INVALID_JUDGES: tuple[Any, ...] = (
    "nonsense",
    "../base",
    {"judge": "nonsense"},
    {"judge": "pocket_style", "nonsense": 1},
    {},
    3,
    {"judge": 3},
    LONG_TEXT,
)
MakeCase = Callable[..., Case]  # the nested function `case` of a group


def suite_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    """Suites with a grid, and suites of a prompt list."""
    grid, prompt_list = fixtures.grid_suite(), fixtures.prompt_list_suite()

    def case(name: str, content: Any, must_fail: bool = True, needs_list: bool = False) -> Case:
        data = content if isinstance(content, bytes) else yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass")
        argv = ("audit", "{in}/edit", "--suite", "{in}/suite.yaml", "--tier", "smoke", "--out", "{out}/audit")
        files: dict[str, bytes | Path] = {"edit": fixtures.edit, "suite.yaml": data, "list.csv": LIST_CSV.encode()}
        return Case(f"suite, {name}", (*argv, *(("--prompt-list", "{in}/list.csv") if needs_list else ())), files, must_fail)

    fixed = [
        case(name, data)
        for name, data in (("empty", b""), ("deep", DEEP_JSON), ("binary", BINARY_BYTES), ("a list", b"[1]"), ("null", b"null"))
    ]
    fixed += [case("anchors", b"a: &a [x]\nb: *a"), case("a duplicate key", yaml.safe_dump(grid).encode() + b"steps: 3\n")]
    for suite_format, suite, needs_list in (("grid", grid, False), ("prompt_list", prompt_list, True)):
        fixed += format_cases(case, suite_format, suite, needs_list, rng)
    fixed += [
        case(f"grid, {key} {str(v)[:50]}", {**grid, key: v}, not (key == "seeds" and v == []) and v != {"sketch": "sketch"})
        for key, values in invalid_values(grid).items()
        for v in values
    ]
    sources = ("none.csv", "../../../none.csv", "hub:a/b/../c", "hub:", "", 3, "suite.yaml", "a\0.csv", LONG_TEXT)
    fixed += [case(f"prompt_list, list {str(source)[:20]!r}", {**prompt_list, "list": source}, True, True) for source in sources]
    rng.shuffle(fixed)
    yield from fixed
    while True:
        yield case("prompt_list, mutated", mutate(prompt_list, rng), must_fail=False, needs_list=True)
        yield case("grid, damaged", damage(yaml.safe_dump(grid).encode(), rng), must_fail=False)


def format_cases(case: MakeCase, suite_format: str, suite: dict[str, Any], needs_list: bool, rng: random.Random) -> list[Case]:
    """Suites of one format with a key removed, added or changed."""
    cases = [
        case(f"{suite_format} without {key}", rest, key not in OPTIONAL_KEYS | {"format"}, needs_list) for key, rest in drop_each_key(suite)
    ]
    cases += [
        case(f"{suite_format}, {key} of another type", {**suite, key: swap_type(v, rng)}, key not in ("judge", "gates"), needs_list)
        for key, v in suite.items()
    ]
    cases += [
        case(f"{suite_format}, unknown key {key[:20]!r}", {**suite, key: 1}, True, needs_list) for key in ("stpes", "", "x y", LONG_TEXT)
    ]
    cases += [
        case(f"{suite_format}, {key} {n}", {**suite, key: n}, key == "steps" or not 0 <= n < float("inf"), needs_list)
        for key in ("steps", "guidance")
        for n in HOSTILE_NUMBERS
    ]
    cases += [
        case(f"{suite_format}, name {t[:20]!r}", {**suite, "name": t}, t not in ("nan", "-1") and not t.isalnum(), needs_list)
        for t in HOSTILE_TEXTS
    ]
    cases += [case(f"{suite_format}, gate {str(gate)[:50]}", {**suite, "gates": {"g": gate}}, True, needs_list) for gate in INVALID_GATES]
    cases += [
        case(f"{suite_format}, judge {str(judge)[:50]}", {**suite, **judge_keys(suite_format, judge)}, True, needs_list)
        for judge in INVALID_JUDGES
    ]
    return cases


def invalid_values(grid: dict[str, Any]) -> dict[str, list[Any]]:
    """Values of the keys of a grid suite that must be refused."""
    return {
        "template": ["no place", "{object}", "{object} {style} {x}", "{object!r} {style}", "{", 3],
        "styles": [{}, {"neon": ""}, {"../x": "a"}, {"neon": None}, ["neon"], {LONG_TEXT: "a"}, {"sketch": "sketch"}],
        "objects": [{}, {"boat": "a boat", "a/b": "x"}, {"boat": 3}],
        "tiers": [
            {},
            {"smoke": [1, 1]},
            {**grid["tiers"], "smoke": [0, 1]},
            {**grid["tiers"], "smoke": [1]},
            {**grid["tiers"], "x": [1, 1]},
        ],
        "excluded": [["nonsense"], "plain", [3]],
        "perturbations": [["nonsense"], "typo", [3]],
        "aliases": [{"nonsense": {"named": ["x"]}}, {"neon": {"nonsense": ["x"]}}, {"neon": {"named": "x"}}, {"neon": {"named": [""]}}],
        "neighbors": [{"nonsense": ["x"]}, {"neon": "x"}, {"neon": ["../x"]}],
        "seeds": [[], [-1], [2**63], ["x"], 3, [1.5]],
        "benign": ["none.txt", "../../../none", 3, "suite.yaml/x"],
        "published": ["nonsense", 3],
        "features": [{"extractor": "nonsense"}, {"nonsense": 1}, 3, "judge"],
        "attacks": [
            attack_config({"nonsense": {}}),
            attack_config({"soft_prefix": {"nonsense": 1}}),
            attack_config({"soft_prefix": {"tokens": "x"}}),
            attack_config({"x": {"attack": "../base"}}),
            attack_config({"learned": {"attack": "learned_embedding", "file": "none.safetensors"}}),
            {**attack_config({"seed_search": {}}), "images": 0},
            {**attack_config({"seed_search": {}}), "tiers": ["nonsense"]},
            {**attack_config({"seed_search": {}}), "prompts": -1},
        ],
    }


def judge_keys(suite_format: str, judge: Any) -> dict[str, Any]:
    return {"judge": judge} if suite_format == "prompt_list" else {"judges": {"style": judge, "object": "pocket_object"}}


def attack_config(use: dict[str, Any]) -> dict[str, Any]:
    return {"tiers": ["smoke"], "prompts": 1, "images": 1, "fresh_images": 1, "use": use}


def table_cases(case: MakeCase, head: str) -> list[Case]:
    """Lists that are damaged, or hold no prompts."""
    return [
        case("empty", b""),
        case("blank lines", "\n\n \n"),
        case("a header alone", head),
        case("no prompt at all", f"{head},1,2\n"),
        case("one of 10^5 letters", f"prompt\n{LONG_TEXT}\n"),
        case("binary", BINARY_BYTES),
        case("UTF-16 without its mark", LIST_CSV.encode("utf-16-le")),
        case("Latin-1", "prompt\ngatò\n".encode("latin-1")),
        case("an open quote", 'prompt\n"a\nb\n'),
        case("rows of another length", "prompt,seed\na,b,1\n"),
        case("a table without prompts", "noun,similarity\ncat,0.5\n"),
        case("too many rows", "prompt\n" + "a\n" * 100_010),
        case("a column that is not there", LIST_CSV, column="#nonsense"),
        case("a column of 10^5 letters", LIST_CSV, column="#" + LONG_TEXT),
        case("JSON, deep", DEEP_JSON, file="list.json"),
        case("JSON, cut", b'[{"prompt": "a"', file="list.json"),
        case("JSON, a number", b"3", file="list.json"),
        case("JSON, NaN", b"[NaN]", file="list.json"),
        case("JSON, a prompt that is a list", b'[{"prompt": ["a"]}]', file="list.json"),
        case("JSON, half a surrogate", b'[{"prompt": "\\ud800"}]', file="list.json"),
        case("JSON, lists in a list", to_json_bytes([["a"]]), file="list.json"),
        case("JSON, no prompts", to_json_bytes([{"a": 1}]), file="list.json"),
        case("JSON, 5,000 digits", b'[{"prompt": "a", "seed": ' + b"9" * 5_000 + b"}]", file="list.json"),
        case("JSON lines, one broken", b'{"prompt": "a"}\n{\n', file="list.jsonl"),
        case("no format", LIST_CSV, file="list.xlsx"),
        case("no suffix", LIST_CSV, file="list"),
        case("a folder", b"x", file="list.csv/x"),
    ]


def list_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    """Prompt lists for `--prompt-list` and `--replay`."""
    suite = yaml.safe_dump(fixtures.prompt_list_suite()).encode()

    def case(name: str, data: bytes | str, must_fail: bool = True, file: str = "list.csv", column: str = "") -> Case:
        argv = ("audit", "{in}/edit", "--suite", "{in}/suite.yaml", "--tier", "smoke", "--out", "{out}/audit")
        address_in = f"{{in}}/{file}{column}"
        list_flags = ("--prompt-list", address_in) if rng.random() < 0.7 else ("--prompt-list", "{in}/valid.csv", "--replay", address_in)
        data_bytes = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
        files: dict[str, bytes | Path] = {"edit": fixtures.edit, "suite.yaml": suite, file: data_bytes, "valid.csv": LIST_CSV.encode()}
        return Case(f"list, {name}", (*argv, *list_flags), files, must_fail)

    head = "prompt,evaluation_seed,evaluation_guidance\n"
    fixed = table_cases(case, head)
    fixed += [
        case(f"seed {v[:20]}", f"{head}a,{v},\n") for v in ("x", "-1", "1.5", "1e9", "9" * 5_000, str(2**64), "nan", "١", "0x1", "1 2")
    ]
    fixed += [case(f"guidance {v[:20]}", f"{head}a,,{v}\n") for v in ("x", "0", "-1", "nan", "inf", "1e400", "7,5", "9" * 5_000, "")[:-1]]
    fixed += [
        case(f"a prompt {t[:20]!r}", json.dumps([{"prompt": t}]), not t.strip("\0 ") or len(t) > 5_000, "list.json") for t in HOSTILE_TEXTS
    ]
    fixed += [case(f"an id {t[:20]!r}", json.dumps([{"prompt": "a", "id": t}]), must_fail=False, file="list.json") for t in HOSTILE_TEXTS]
    argv = ("audit", "{in}/edit", "--suite", "{in}/suite.yaml", "--tier", "smoke", "--out", "{out}/audit")
    addresses = (
        "hub:",
        "hub:a",
        "hub:a/b",
        "hub:a/b/",
        "hub:a/b/../c.csv",
        "hub:-a/b--/c.csv",
        "hub:a/b/c.csv",
        "hub:a/b/" + LONG_TEXT,
        "HUB:a/b/c",
    )
    fixed += [
        Case(f"{flag} {address[:30]!r}", (*argv, flag, address), {"edit": fixtures.edit, "suite.yaml": suite})
        for flag in ("--prompt-list", "--replay")
        for address in (*addresses, "a\0b.csv", LONG_TEXT + ".csv", "/dev/null", "/", ".", "{in}/edit")
    ]
    rng.shuffle(fixed)
    yield from fixed
    while True:
        yield case("damaged", damage(LIST_CSV.encode(), rng), must_fail=False)
