"""What an audit asks: suites of both forms, and prompt lists."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fuzzing.case import BINARY, DEEP, LONG, NUMBERS, TEXTS, Case, damaged, encoded, mutated, swapped, without
from fuzzing.ground import Ground

OPTIONAL = {"neighbours", "benign", "attacks", "features", "seeds", "published", "clip"}
LIST = "case_number,prompt,evaluation_seed,evaluation_guidance\n7,a boat in neon style,5,4\n8,neon lights,6,7.5\n"


def suites(ground: Ground, rng: random.Random) -> Iterator[Case]:
    """Suites with a grid and of prompts alone."""
    grid, listed = ground.grid(), ground.listed()

    def case(name: str, found: Any, wrong: bool = True, prompts: bool = False) -> Case:
        data = found if isinstance(found, bytes) else yaml.safe_dump(found, allow_unicode=True).encode("utf-8", "surrogatepass")
        argv = ("audit", "{in}/edit", "--suite", "{in}/suite.yaml", "--tier", "smoke", "--out", "{out}/audit")
        files: dict[str, bytes | Path] = {"edit": ground.edit, "suite.yaml": data, "list.csv": LIST.encode()}
        return Case(f"suite, {name}", (*argv, *(("--prompts", "{in}/list.csv") if prompts else ())), files, wrong)

    fixed = [case(name, data) for name, data in (("empty", b""), ("deep", DEEP), ("binary", BINARY), ("a list", b"[1]"), ("null", b"null"))]
    fixed += [case("anchors", b"a: &a [x]\nb: *a"), case("a key twice", yaml.safe_dump(grid).encode() + b"steps: 3\n")]
    for form, suite, asks in (("grid", grid, False), ("prompts", listed, True)):
        fixed += [case(f"{form} without {k}", less, k not in OPTIONAL | {"form"}, asks) for k, less in without(suite)]
        fixed += [
            case(f"{form}, {k} of another type", {**suite, k: swapped(v, rng)}, k not in ("judge", "gates"), asks) for k, v in suite.items()
        ]
        fixed += [case(f"{form}, unknown key {k[:20]!r}", {**suite, k: 1}, True, asks) for k in ("stpes", "", "x y", LONG)]
        fixed += [
            case(f"{form}, {k} {n}", {**suite, k: n}, k == "steps" or not 0 <= n < float("inf"), asks)
            for k in ("steps", "guidance")
            for n in NUMBERS
        ]
        fixed += [case(f"{form}, name {t[:20]!r}", {**suite, "name": t}, t not in ("nan", "-1") and not t.isalnum(), asks) for t in TEXTS]
        fixed += [
            case(f"{form}, gate {str(gate)[:50]}", {**suite, "gates": {"g": gate}}, True, asks)
            for gate in (
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
        ]
        fixed += [
            case(f"{form}, judge {str(judge)[:50]}", {**suite, **of_judge(form, judge)}, True, asks)
            for judge in ("nonsense", "../base", {"judge": "nonsense"}, {"judge": "pocket_style", "nonsense": 1}, {}, 3, {"judge": 3}, LONG)
        ]
    broken: dict[str, list[Any]] = {
        "template": ["no place", "{object}", "{object} {style} {x}", "{object!r} {style}", "{", 3],
        "styles": [{}, {"neon": ""}, {"../x": "a"}, {"neon": None}, ["neon"], {LONG: "a"}, {"sketch": "sketch"}],
        "objects": [{}, {"boat": "a boat", "a/b": "x"}, {"boat": 3}],
        "tiers": [
            {},
            {"smoke": [1, 1]},
            {**grid["tiers"], "smoke": [0, 1]},
            {**grid["tiers"], "smoke": [1]},
            {**grid["tiers"], "x": [1, 1]},
        ],
        "apart": [["nonsense"], "plain", [3]],
        "mutations": [["nonsense"], "typo", [3]],
        "aliases": [{"nonsense": {"named": ["x"]}}, {"neon": {"nonsense": ["x"]}}, {"neon": {"named": "x"}}, {"neon": {"named": [""]}}],
        "neighbours": [{"nonsense": ["x"]}, {"neon": "x"}, {"neon": ["../x"]}],
        "seeds": [[], [-1], [2**63], ["x"], 3, [1.5]],
        "benign": ["none.txt", "../../../none", 3, "suite.yaml/x"],
        "published": ["nonsense", 3],
        "features": [{"extractor": "nonsense"}, {"nonsense": 1}, 3, "judge"],
        "attacks": [
            attacks({"nonsense": {}}),
            attacks({"soft_prefix": {"nonsense": 1}}),
            attacks({"soft_prefix": {"tokens": "x"}}),
            attacks({"x": {"attack": "../base"}}),
            attacks({"learned": {"attack": "learned_embedding", "file": "none.safetensors"}}),
            {**attacks({"seed_search": {}}), "pictures": 0},
            {**attacks({"seed_search": {}}), "tiers": ["nonsense"]},
            {**attacks({"seed_search": {}}), "prompts": -1},
        ],
    }
    fixed += [
        case(f"grid, {k} {str(v)[:50]}", {**grid, k: v}, not (k == "seeds" and v == []) and v != {"sketch": "sketch"})
        for k, many in broken.items()
        for v in many
    ]
    sources = ("none.csv", "../../../none.csv", "hub:a/b/../c", "hub:", "", 3, "suite.yaml", "a\0.csv", LONG)
    fixed += [case(f"prompts, list {str(source)[:20]!r}", {**listed, "list": source}, True, True) for source in sources]
    rng.shuffle(fixed)
    yield from fixed
    while True:
        yield case("prompts, mutated", mutated(listed, rng), wrong=False, prompts=True)
        yield case("grid, damaged", damaged(yaml.safe_dump(grid).encode(), rng), wrong=False)


def of_judge(form: str, judge: Any) -> dict[str, Any]:
    return {"judge": judge} if form == "prompts" else {"judges": {"style": judge, "object": "pocket_object"}}


def attacks(use: dict[str, Any]) -> dict[str, Any]:
    return {"tiers": ["smoke"], "prompts": 1, "pictures": 1, "fresh": 1, "use": use}


def lists(ground: Ground, rng: random.Random) -> Iterator[Case]:
    """Prompt lists for `--prompts` and `--replay`."""
    suite = yaml.safe_dump(ground.listed()).encode()

    def case(name: str, data: bytes | str, wrong: bool = True, file: str = "list.csv", column: str = "") -> Case:
        argv = ("audit", "{in}/edit", "--suite", "{in}/suite.yaml", "--tier", "smoke", "--out", "{out}/audit")
        given = f"{{in}}/{file}{column}"
        asked = ("--prompts", given) if rng.random() < 0.7 else ("--prompts", "{in}/sound.csv", "--replay", given)
        bits = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
        files: dict[str, bytes | Path] = {"edit": ground.edit, "suite.yaml": suite, file: bits, "sound.csv": LIST.encode()}
        return Case(f"list, {name}", (*argv, *asked), files, wrong)

    head = "prompt,evaluation_seed,evaluation_guidance\n"
    fixed = [
        case("empty", b""),
        case("blank lines", "\n\n \n"),
        case("a header alone", head),
        case("no prompt at all", f"{head},1,2\n"),
        case("one of 10^5 letters", f"prompt\n{LONG}\n"),
        case("binary", BINARY),
        case("UTF-16 without its mark", LIST.encode("utf-16-le")),
        case("Latin-1", "prompt\ngatò\n".encode("latin-1")),
        case("an open quote", 'prompt\n"a\nb\n'),
        case("rows of another length", "prompt,seed\na,b,1\n"),
        case("a table without prompts", "noun,similarity\ncat,0.5\n"),
        case("too many rows", "prompt\n" + "a\n" * 100_010),
        case("a column that is not there", LIST, column="#nonsense"),
        case("a column of 10^5 letters", LIST, column="#" + LONG),
        case("JSON, deep", DEEP, file="list.json"),
        case("JSON, cut", b'[{"prompt": "a"', file="list.json"),
        case("JSON, a number", b"3", file="list.json"),
        case("JSON, NaN", b"[NaN]", file="list.json"),
        case("JSON, a prompt that is a list", b'[{"prompt": ["a"]}]', file="list.json"),
        case("JSON, half a surrogate", b'[{"prompt": "\\ud800"}]', file="list.json"),
        case("JSON, lists in a list", encoded([["a"]]), file="list.json"),
        case("JSON, no prompts", encoded([{"a": 1}]), file="list.json"),
        case("JSON, 5,000 digits", b'[{"prompt": "a", "seed": ' + b"9" * 5_000 + b"}]", file="list.json"),
        case("JSON lines, one broken", b'{"prompt": "a"}\n{\n', file="list.jsonl"),
        case("no format", LIST, file="list.xlsx"),
        case("no suffix", LIST, file="list"),
        case("a folder", b"x", file="list.csv/x"),
    ]
    fixed += [
        case(f"seed {v[:20]}", f"{head}a,{v},\n") for v in ("x", "-1", "1.5", "1e9", "9" * 5_000, str(2**64), "nan", "١", "0x1", "1 2")
    ]
    fixed += [case(f"guidance {v[:20]}", f"{head}a,,{v}\n") for v in ("x", "0", "-1", "nan", "inf", "1e400", "7,5", "9" * 5_000, "")[:-1]]
    fixed += [case(f"a prompt {t[:20]!r}", json.dumps([{"prompt": t}]), not t.strip("\0 ") or len(t) > 5_000, "list.json") for t in TEXTS]
    fixed += [case(f"an id {t[:20]!r}", json.dumps([{"prompt": "a", "id": t}]), wrong=False, file="list.json") for t in TEXTS]
    argv = ("audit", "{in}/edit", "--suite", "{in}/suite.yaml", "--tier", "smoke", "--out", "{out}/audit")
    addresses = (
        "hub:",
        "hub:a",
        "hub:a/b",
        "hub:a/b/",
        "hub:a/b/../c.csv",
        "hub:-a/b--/c.csv",
        "hub:a/b/c.csv",
        "hub:a/b/" + LONG,
        "HUB:a/b/c",
    )
    fixed += [
        Case(f"{flag} {address[:30]!r}", (*argv, flag, address), {"edit": ground.edit, "suite.yaml": suite})
        for flag in ("--prompts", "--replay")
        for address in (*addresses, "a\0b.csv", LONG + ".csv", "/dev/null", "/", ".", "{in}/edit")
    ]
    rng.shuffle(fixed)
    yield from fixed
    while True:
        yield case("damaged", damaged(LIST.encode(), rng), wrong=False)
