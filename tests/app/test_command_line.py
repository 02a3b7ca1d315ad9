"""How a line becomes the options of a command: the tree, the two readings of `erase`, the way back, and what tyro tells of mistakes."""

import re
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
import tyro

from app.cli import main
from app.command_line import COMMANDS, parse_command_line
from app.commands.audit import ACTION_NAMES, AuditAction, AuditCommand
from app.commands.audit_report import AuditReportCommand
from app.commands.erase import EraseCommand
from app.commands.jobs import JobsAction, JobsCommand, RunCommand
from app.parse_errors import NoCommand, UnknownWords
from app.parsing import parse, parse_known, to_argv
from erasure.config.registry import list_modules
from erasure.errors import UserError
from tests.command_line import complaint_of

ONE_OF = tyro.conf.create_mutex_group(required=False)
HEAVY = ("torch", "diffusers", "transformers", "gradio", "pydantic", "yaml", "numpy", "tqdm", "rich")


@pytest.mark.parametrize(
    "line",
    [
        *(f"{name} --help" for name in COMMANDS),
        *(f"audit {name} --help" for name in ACTION_NAMES),
        *(f"jobs {name} --help" for name in ("run", "status", "leaderboard", "run-one")),
        "erase --method salun --kind object --help",
        *("--help", "--version", "erase --concept x --lr many", "eraze", "audit none --workers x"),
    ],
)
def test_help_and_mistakes_import_nothing_heavy(line: str) -> None:
    """These libraries are what makes a start slow; the time itself would depend on the machine."""
    code = f"import sys; from app.cli import main; main(sys.argv[1:]); print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_the_action_of_an_audit_is_optional_and_stands_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_command_line(["audit", "a", "b", "--tier", "smoke"]) == AuditCommand(edits=(Path("a"), Path("b")), tier="smoke")
    assert parse_command_line(["audit", "report", "a"]) == AuditCommand(action=AuditReportCommand(audit=Path("a")))
    assert parse_command_line(["audit", "./report"]) == AuditCommand(edits=(Path("report"),))
    assert parse_command_line(["audit", "--", "report"]) == AuditCommand(edits=(Path("report"),))
    for line in (["audit", "a", "report", "b"], ["audit", "--suite", "x", "report", "b"]):
        assert "audit report takes its options behind its name" in complaint_of(line, capsys)
    assert "erasure audit report" in complaint_of(["audit", "reprot", "x"], capsys)
    assert tuple(member.__metadata__[0].name for member in get_args(AuditAction)) == ACTION_NAMES


def test_an_action_of_jobs_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_command_line(["jobs", "run", "plan.yaml", "--retry"]) == JobsCommand(action=RunCommand(plan=Path("plan.yaml"), retry=True))
    assert main(["jobs"]) == 0
    output = capsys.readouterr().out
    assert all(f"• {member.__metadata__[0].name} " in output for member in get_args(JobsAction))
    assert "Did you mean 'status'? Available: leaderboard, run, run-one, status" in complaint_of(["jobs", "statsu", "--retry"], capsys)


def test_no_command_prints_the_list_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ([], ["--help"], ["-h"], ["--"]):
        assert main(line) == 0
        output = capsys.readouterr().out
        assert all(re.search(rf"• {name}\s+{command.summary.split()[0]}", output) for name, command in COMMANDS.items())


def test_options_say_their_own_command() -> None:
    """Messages name the command by these words."""
    for name, command in COMMANDS.items():
        assert command.options.words == name
    for prefix, union in (("audit", AuditAction), ("jobs", JobsAction)):
        for member in get_args(union):
            assert member.__origin__.words == f"{prefix} {member.__metadata__[0].name}"


@pytest.mark.parametrize("method", list_modules("erasure.methods"))
def test_options_of_a_method_are_none_unless_they_are_given(method: str) -> None:
    command = parse_command_line(["erase", "--concept", "x", "--method", method])
    assert isinstance(command, EraseCommand) and command.method == method
    assert all(value is None for value in command.method_fields().values())


def given(command: EraseCommand) -> dict[str, Any]:
    """The options of the method that are given."""
    return {name: value for name, value in command.method_fields().items() if value is not None}


def test_given_options_of_a_method_are_told_from_others() -> None:
    """Also where a given value equals the default, is empty, or turns a switch off."""
    command = parse_command_line(["erase", "--steps", "150", "--concept", "x", "--erase_from", "", "--lr=1e-5"])
    assert given(command) == {
        "steps": 150,
        "erase_from": "",
        "lr": 1e-5,
    }
    command = parse_command_line(["erase", "--concept", "x", "--method", "fia", "--base-prompts", "--no-scale-saliency"])
    assert given(command) == {
        "base_prompts": (),
        "scale_saliency": False,
    }


def test_what_decides_the_options_is_read_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ("--method uce --erase-weight 2", "--erase-weight 2 --method=uce", "--method=esd --erase-weight=2 --method uce")
    for line in map(str.split, lines):
        assert parse_command_line(["erase", "--concept", "x", *line]).method_fields()["erase_weight"] == 2.0
    assert "does not take '--method uce'" in complaint_of(["erase", "--concept", "x", "--", "--method", "uce"], capsys)
    assert "--method needs a value" in complaint_of(["erase", "--concept", "x", "--method"], capsys)


COMMAND_LINES = [
    AuditCommand(edits=(Path("a"), Path("-b"), Path("report"))),
    AuditCommand(
        edits=(Path("runs/neon"),),
        suite="pocket/neon",
        tier="full",
        concept="a; b",
        kind="nsfw",
        model="org/name",
        out=Path("out folder"),
        dtype="fp32",
        only="boat",
        retrained=("a", "org/b"),
        keep_images="none",
        workers=3,
        shard="1/2",
        strength=-1.5,
        other_base=True,
        blur=True,
    ),
]


@pytest.mark.parametrize("command", COMMAND_LINES)
def test_options_have_a_command_line(command: AuditCommand) -> None:
    """With which an audit starts its workers."""
    assert parse_command_line(["audit", *to_argv(command)]) == command


def test_every_option_of_an_audit_can_be_given_to_its_workers() -> None:
    changed = COMMAND_LINES[1]
    same = {f.name for f in fields(AuditCommand) if getattr(changed, f.name) == f.default}
    memory = {"offload", "vae", "resolution", "images_at_once"}
    assert same == {"action", "attention", "device", "fresh", "prompt_list", "replay", *memory}  # like others, or never a worker's
    more = replace(changed, attention="sdpa", device="cpu", fresh=True, prompt_list="a.csv", replay="hub:a/b/c.csv#x")
    more = replace(more, offload="all", vae="tiled", resolution=512, images_at_once=3)
    assert parse_command_line(["audit", *to_argv(more)]) == more


@dataclass(frozen=True)
class One:
    path: Annotated[Path, tyro.conf.Positional]  # a path
    count: int = 1
    tier: Literal["low", "high"] = "low"


@dataclass(frozen=True)
class Two:
    rate: float  # a rate


@dataclass(frozen=True)
class OneOfTwo:
    """Options of which only one may be given, which no command has."""

    a: Annotated[int, ONE_OF] = 0
    b: Annotated[int, ONE_OF] = 0


SmallTree: Any = Annotated[One, tyro.conf.subcommand("one")] | Annotated[Two, tyro.conf.subcommand("two")]


@pytest.mark.parametrize(
    ("line", "kind", "complaint"),
    [
        ("", NoCommand, "erasure needs one of one, two"),
        ("three", UnknownWords, "three"),
        ("one a --cuont 3", UnknownWords, "--cuont 3"),
        ("one", UserError, "one needs PATH (a path). See erasure one --help."),
        ("two --raet 3", UserError, "two needs --rate (a rate). It does not take '--raet 3'. Did you mean --rate? See"),
        ("one a --tier hig", UserError, "unknown value of --tier 'hig'. Did you mean 'high'? Available: high, low. See"),
        ("two --rate", UserError, "--rate needs a value: a rate. See erasure two --help."),
        ("one a --count many", UserError, "--count must be a whole number, got 'many'. See erasure one --help."),
        ("two --rate many", UserError, "--rate must be a number, got 'many'. See erasure two --help."),
        ("two --rate inf", UserError, "--rate must be a finite number, got 'inf'. See erasure two --help."),
    ],
)
def test_every_event_of_tyro_that_we_read_becomes_one_sentence(line: str, kind: type[UserError], complaint: str) -> None:
    """The events are private to tyro: another version may change them, and then this fails."""
    with pytest.raises(UserError, match=re.escape(complaint)) as caught:
        parse(SmallTree, line.split(), line.split()[0] if line else "")
    assert type(caught.value) is kind


def test_an_event_that_is_not_known_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^the arguments cannot be used \(MutexConflict\)\. See erasure x --help\.$"):
        parse(OneOfTwo, ["--a", "1", "--b", "2"], "x")


def test_a_first_reading_leaves_the_rest() -> None:
    options = parse_known(SmallTree, ["one", "a", "--help", "b", "--none"])
    assert options.path == Path("a")
