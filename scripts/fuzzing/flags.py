"""Every flag of every command with values of the wrong type, out of range, too long, or of letters that no name has."""

import random
import types
import typing
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from app.parsing import combined
from erasure.config.registry import load, names
from erasure.methods.base import Method
from fuzzing.case import LONG, TEXTS, Case
from fuzzing.ground import Ground

KEEP = ("a dog", "a tree")
WALKS = {"walks": 4, "walk_steps": 2, "steps": 1, "batch": 1}
RETAIN = {"retain": KEEP, "retain_walks": 2, "retain_batch": 1}
SMALL: dict[str, dict[str, Any]] = {  # so that what is not refused ends soon
    "esd": WALKS,
    "salun": {**WALKS, **RETAIN},
    "advunlearn": {**WALKS, **RETAIN, "attack_steps": 1, "warmup": 1, "tokens": 1},
    "uce": {"preserve": KEEP, "probes": KEEP},
    "fia": {"r2": 0.1, "record_steps": 1, "walk_steps": 2},
    "sfd": {"steps": 1, "batch": 1, "rank": 1, "retain": KEEP, "distil_steps": 1, "distil_walks": 2, "walk_steps": 2},
    "sfd_matching": {"steps": 1, "batch": 1, "retain_batch": 1, "retain": KEEP, "draws": 2, "retain_draws": 2, "points": 2},
    "negative_prompt": {},
    "sld": {},
}
NO_NUMBER = ("x", "", "1,5", "--", "0x10", "1_0_", "nan nan")
NO_WHOLE = (*NO_NUMBER, "1.5", "1e12", "nan", "9" * 5_000, "-7", "-" + "9" * 30)
NOT_FINITE = ("nan", "inf", "-inf", "1e400", *NO_NUMBER)
NO_FILE = ("a\0b", "{in}/plain.txt/x", "x" * 5_000, "../../../nowhere/at/all")
NO_FOLDER = ("a\0b", "{in}/plain.txt/x", "{in}/plain.txt", "x" * 5_000)
HUGE = ("1001", "1000000000000", "9223372036854775808")
TOO_MUCH = {"port", "walk_steps", "seed", "rank"}  # where a value of HUGE can be told from a long wait
ENDLESS = {("studio", "port"), ("jobs run-one", "parent")}  # not refused, they serve, or end this process
NAMED = {"device", "suite", "model"}  # texts that name something which is not there


def flags(ground: Ground, rng: random.Random) -> Iterator[Case]:
    every = [case for command, argv, options, files in commands(ground) for case in of_command(command, argv, options, files)]
    rng.shuffle(every)
    yield from every


def commands(ground: Ground) -> Iterator[tuple[str, list[str], type, dict[str, Any]]]:
    """Each command with a line that would work, its options and the files it reads."""
    model, edit = str(ground.model), {"edit": ground.edit, "plain.txt": b"plain"}
    audit = {"audit": ground.audit, **edit}
    for name in names("erasure.methods"):
        cls = load("erasure.methods", name, Method)
        small = [part for key, value in SMALL[name].items() for part in flag(key, value)]
        argv = ["erase", "--method", name, "--concept", "neon", "--model", model, "--out", "{out}/run", *small]
        yield f"erase {name}", argv, combined("Erase", options("erase", "Options"), cls), edit
    suite = {**audit, "grid.yaml": ground.root / "grid.yaml"}
    line = ["{in}/edit", "--suite", "{in}/grid.yaml", "--tier", "smoke"]
    yield "audit", ["audit", *line, "--out", "{out}/audit"], options("audit", "Options"), suite
    yield "audit report", ["audit", "report", "{in}/audit"], options("audit", "ReportOptions"), audit
    yield "audit compare", ["audit", "compare", "{in}/audit", "{in}/audit"], options("audit", "CompareOptions"), audit
    answers = ["audit", "answers", "{in}/audit", "--concept", "neon", "--out", "{out}/a"]
    yield "audit answers", answers, options("audit", "AnswersOptions"), audit
    sequence = import_module("app.commands.audit_sequence").Options
    yield "audit sequence", ["audit", "sequence", *line, "--out", "{out}/s"], sequence, suite
    yield "export", ["export", "{in}/edit", "--out", "{out}/lora"], options("export", "Options"), edit
    plan = {"plan.yaml": b"model: %b\njobs: [{concept: neon}]\n" % model.encode(), "plain.txt": b"plain"}
    yield "jobs run", ["jobs", "run", "{in}/plan.yaml", "--dry-run"], options("jobs", "RunOptions"), plan
    yield "jobs status", ["jobs", "status", "{in}/job"], options("jobs", "StatusOptions"), {"job": ground.job, "plain.txt": b"plain"}
    yield "jobs board", ["jobs", "board", "{in}/runs", "--out", "{out}/b"], options("jobs", "BoardOptions"), {"runs": ground.audit, **edit}
    yield "jobs run-one", ["jobs", "run-one", "{in}/job/spec.json"], options("jobs", "OneOptions"), {"job": ground.job, "plain.txt": b"x"}
    yield "studio", ["studio", "--model", "{in}/none"], options("studio", "Options"), {"plain.txt": b"plain"}
    yield "methods", ["methods", "--model", model], options("methods", "Options"), {"plain.txt": b"plain"}
    yield "clean", ["clean"], options("clean", "Options"), {"plain.txt": b"plain"}
    yield "doctor", ["doctor", "--nonsense"], options("doctor", "Options"), {"plain.txt": b"plain"}
    yield "demo", ["demo", "--concept", "nothing that pocket knows"], options("demo", "Options"), {"plain.txt": b"plain"}


def options(command: str, cls: str) -> type:
    found: type = getattr(import_module(f"app.commands.{command}"), cls)
    return found


def flag(name: str, value: Any) -> list[str]:
    return [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]


def of_command(command: str, argv: list[str], cls: type, files: dict[str, Any]) -> Iterator[Case]:
    yield Case(f"{command} --nonsense", (*argv, "--nonsense", "1"), files)
    yield Case(f"{command}, a word too many", (*argv, "--", "nonsense", "a\0b"), files, wrong=False)
    hints = typing.get_type_hints(cls)
    for f in fields(cls):  # type: ignore[arg-type]  # a dataclass
        name = {"form": "as"}.get(f.name, f.name)
        for value, wrong in values(command, f.name, hints[f.name]):
            given = (*argv, f"--{name.replace('_', '-')}={value}")
            yield Case(f"{command} --{name} {value[:30]!r}", given, files, wrong)


def values(command: str, name: str, hint: Any) -> Iterator[tuple[str, bool]]:
    """Hostile values of a field, and whether they must be refused."""
    parts = flat(hint)
    if any(typing.get_origin(part) is Literal for part in parts):
        yield from ((text, True) for text in ("nonsense", "", "a\0b", LONG))
        yield "None", type(None) not in parts  # an option that may be left out is left out by this word, too
    elif bool in parts:
        yield from ((text, True) for text in ("maybe", "", "2"))
    elif int in parts:
        yield from ((text, True) for text in NO_WHOLE if not (text.startswith("-") and (command, name) in ENDLESS))
        yield ("0", False) if (command, name) not in ENDLESS else ("x1", True)
        if name in TOO_MUCH and (command, name) not in ENDLESS:
            yield from ((text, name == "walk_steps" or (name == "seed" and len(text) > 18)) for text in HUGE)
    elif float in parts:
        yield from ((text, True) for text in NOT_FINITE)
        yield from ((text, False) for text in ("-1", "0", "1e30"))
    elif Path in parts:
        yield from ((text, True) for text in (NO_FOLDER if name == "out" else NO_FILE))
    elif str in parts:
        yield from ((text, (name in NAMED and text != "") or (name == "concept" and not text.strip())) for text in TEXTS)


def flat(hint: Any) -> list[Any]:
    """The types that a hint is made of, Literals whole."""
    origin = typing.get_origin(hint)
    if origin is Literal or origin is None:
        return [hint]
    arguments = typing.get_args(hint)[:1] if origin is typing.Annotated else typing.get_args(hint)
    return [part for argument in arguments for part in flat(argument)] if isinstance(origin, type | types.UnionType) or origin else [hint]
