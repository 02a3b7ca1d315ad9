"""Every flag of every command with values of the wrong type, out of range, too long, or with invalid characters."""

import random
import types
import typing
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from app.commands.audit import AuditCommand
from app.commands.audit_compare import AuditCompareCommand
from app.commands.audit_images import AuditImagesCommand
from app.commands.audit_report import AuditReportCommand
from app.commands.audit_sequence import AuditSequenceCommand
from app.commands.clean import CleanCommand
from app.commands.demo import DemoCommand
from app.commands.doctor import DoctorCommand
from app.commands.erase import add_method_options
from app.commands.export import ExportCommand
from app.commands.jobs import LeaderboardCommand, RunCommand, RunOneCommand, StatusCommand
from app.commands.methods import MethodsCommand
from app.commands.studio import StudioCommand
from erasure.config.registry import list_modules
from fuzzing.case import HOSTILE_TEXTS, LONG_TEXT, Case
from fuzzing.fixtures import Fixtures

RETAIN_PROMPTS = ("a dog", "a tree")
TRAJECTORY_FIELDS = {"trajectories": 4, "trajectory_steps": 2, "steps": 1, "batch": 1}
RETAIN_FIELDS = {"retain_prompts": RETAIN_PROMPTS, "retain_trajectories": 2, "retain_batch": 1}
SMALL_FIELDS: dict[str, dict[str, Any]] = {  # short runs, because some cases are not refused
    "esd": TRAJECTORY_FIELDS,
    "salun": {**TRAJECTORY_FIELDS, **RETAIN_FIELDS},
    "advunlearn": {**TRAJECTORY_FIELDS, **RETAIN_FIELDS, "attack_steps": 1, "warmup": 1, "attack_tokens": 1},
    "uce": {"retain_prompts": RETAIN_PROMPTS, "probe_prompts": RETAIN_PROMPTS},
    "fia": {"candidate_fraction": 0.1, "record_steps": 1, "trajectory_steps": 2},
    "sfd": {
        "steps": 1,
        "batch": 1,
        "rank": 1,
        "retain_prompts": RETAIN_PROMPTS,
        "distill_steps": 1,
        "distill_trajectories": 2,
        "trajectory_steps": 2,
    },
    "sfd_matching": {
        "steps": 1,
        "batch": 1,
        "retain_batch": 1,
        "retain_prompts": RETAIN_PROMPTS,
        "generated_images": 2,
        "retain_generated_images": 2,
        "noise_levels": 2,
    },
    "negative_prompt": {},
    "doco": {**TRAJECTORY_FIELDS, **RETAIN_FIELDS, "warmup": 0},
    "duo": {**TRAJECTORY_FIELDS, "levels": 1},
    "npo": {**TRAJECTORY_FIELDS, **RETAIN_FIELDS},
    "projected": {},
    "ssd": {"retain_prompts": RETAIN_PROMPTS, "trajectories": 2, "retain_trajectories": 2, "trajectory_steps": 2},
    "sld": {},
}
BAD_FLOATS = ("x", "", "1,5", "--", "0x10", "1_0_", "nan nan")
BAD_INTEGERS = (*BAD_FLOATS, "1.5", "1e12", "nan", "9" * 5_000, "-7", "-" + "9" * 30)
NOT_FINITE_FLOATS = ("nan", "inf", "-inf", "1e400", *BAD_FLOATS)
BAD_FILES = ("a\0b", "{in}/plain.txt/x", "x" * 5_000, "../../../nowhere/at/all")
BAD_FOLDERS = ("a\0b", "{in}/plain.txt/x", "{in}/plain.txt", "x" * 5_000)
HUGE_INTEGERS = ("1001", "1000000000000", "9223372036854775808")
BOUNDED_FLAGS = {"port", "trajectory_steps", "seed", "rank"}  # where a value of HUGE_INTEGERS does not just run for long
ENDLESS_FLAGS = {("studio", "port"), ("jobs run-one", "parent_pid")}  # valid values serve forever, or end this process
LOOKED_UP_FLAGS = {"device", "suite", "model"}  # texts that must name something that exists


def flag_cases(fixtures: Fixtures, rng: random.Random) -> Iterator[Case]:
    cases = [case for command, argv, options, files in valid_commands(fixtures) for case in command_cases(command, argv, options, files)]
    rng.shuffle(cases)
    yield from cases


def valid_commands(fixtures: Fixtures) -> Iterator[tuple[str, list[str], type, dict[str, Any]]]:
    """Yield each command with a valid command line, its options and the files it reads."""
    model, edit = str(fixtures.model), {"edit": fixtures.edit, "plain.txt": b"plain"}
    audit = {"audit": fixtures.audit, **edit}
    for name in list_modules("erasure.methods"):
        method_flags = [part for key, value in SMALL_FIELDS[name].items() for part in flag_argv(key, value)]
        argv = ["erase", "--method", name, "--concept", "neon", "--model", model, "--out", "{out}/run", *method_flags]
        yield f"erase {name}", argv, add_method_options(name, "style", model), edit
    suite = {**audit, "grid.yaml": fixtures.root / "grid.yaml"}
    audit_arguments = ["{in}/edit", "--suite", "{in}/grid.yaml", "--tier", "smoke"]
    yield "audit", ["audit", *audit_arguments, "--out", "{out}/audit"], AuditCommand, suite
    yield "audit report", ["audit", "report", "{in}/audit"], AuditReportCommand, audit
    yield "audit compare", ["audit", "compare", "{in}/audit", "{in}/audit"], AuditCompareCommand, audit
    images_argv = ["audit", "images", "{in}/audit", "--concept", "neon", "--out", "{out}/a"]
    yield "audit images", images_argv, AuditImagesCommand, audit
    yield "audit sequence", ["audit", "sequence", *audit_arguments, "--out", "{out}/s"], AuditSequenceCommand, suite
    yield "export", ["export", "{in}/edit", "--out", "{out}/lora"], ExportCommand, edit
    plan = {"plan.yaml": b"model: %b\njobs: [{concept: neon}]\n" % model.encode(), "plain.txt": b"plain"}
    yield "jobs run", ["jobs", "run", "{in}/plan.yaml", "--dry-run"], RunCommand, plan
    yield (
        "jobs status",
        ["jobs", "status", "{in}/job"],
        StatusCommand,
        {"job": fixtures.job, "plain.txt": b"plain"},
    )
    yield (
        "jobs leaderboard",
        ["jobs", "leaderboard", "{in}/runs", "--out", "{out}/b"],
        LeaderboardCommand,
        {"runs": fixtures.audit, **edit},
    )
    yield (
        "jobs run-one",
        ["jobs", "run-one", "{in}/job/spec.json"],
        RunOneCommand,
        {"job": fixtures.job, "plain.txt": b"x"},
    )
    yield "studio", ["studio", "--model", "{in}/none"], StudioCommand, {"plain.txt": b"plain"}
    yield "methods", ["methods", "--model", model], MethodsCommand, {"plain.txt": b"plain"}
    yield "clean", ["clean"], CleanCommand, {"plain.txt": b"plain"}
    yield "doctor", ["doctor", "--nonsense"], DoctorCommand, {"plain.txt": b"plain"}
    yield "demo", ["demo", "--concept", "nothing that pocket knows"], DemoCommand, {"plain.txt": b"plain"}


def flag_argv(name: str, value: Any) -> list[str]:
    return [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]


def command_cases(command: str, argv: list[str], cls: type, files: dict[str, Any]) -> Iterator[Case]:
    yield Case(f"{command} --nonsense", (*argv, "--nonsense", "1"), files)
    yield Case(f"{command}, a word too many", (*argv, "--", "nonsense", "a\0b"), files, must_fail=False)
    hints = typing.get_type_hints(cls)
    for f in fields(cls):  # type: ignore[arg-type]  # a dataclass
        if f.name == "action":  # a word, whose own options have cases of their own
            continue
        for value, must_fail in hostile_values(command, f.name, hints[f.name]):
            flag = f"--{f.name.replace('_', '-')}"
            yield Case(f"{command} {flag} {value[:30]!r}", (*argv, f"{flag}={value}"), files, must_fail)


def hostile_values(command: str, name: str, hint: Any) -> Iterator[tuple[str, bool]]:
    """Yield hostile values of a field, and whether each must be refused."""
    parts = flatten_hint(hint)
    if any(typing.get_origin(part) is Literal for part in parts):
        yield from ((text, True) for text in ("nonsense", "", "a\0b", LONG_TEXT, "None"))
    elif bool in parts:
        yield from ((text, True) for text in ("maybe", "", "2"))
    elif int in parts:
        yield from ((text, True) for text in BAD_INTEGERS if not (text.startswith("-") and (command, name) in ENDLESS_FLAGS))
        yield ("0", False) if (command, name) not in ENDLESS_FLAGS else ("x1", True)
        if name in BOUNDED_FLAGS and (command, name) not in ENDLESS_FLAGS:
            yield from ((text, name == "trajectory_steps" or (name == "seed" and len(text) > 18)) for text in HUGE_INTEGERS)
    elif float in parts:
        yield from ((text, True) for text in NOT_FINITE_FLOATS)
        yield from ((text, False) for text in ("-1", "0", "1e30"))
    elif Path in parts:
        yield from ((text, True) for text in (BAD_FOLDERS if name == "out" else BAD_FILES))
    elif str in parts:
        yield from ((text, (name in LOOKED_UP_FLAGS and text != "") or (name == "concept" and not text.strip())) for text in HOSTILE_TEXTS)


def flatten_hint(hint: Any) -> list[Any]:
    """Return the types in a hint; a Literal stays whole."""
    origin = typing.get_origin(hint)
    if origin is Literal or origin is None:
        return [hint]
    arguments = typing.get_args(hint)[:1] if origin is typing.Annotated else typing.get_args(hint)
    return (
        [part for argument in arguments for part in flatten_hint(argument)]
        if isinstance(origin, type | types.UnionType) or origin
        else [hint]
    )
