"""What cannot be done is refused in one short line, before torch is imported where that can be known, and never by a traceback."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from app import command_line
from app.cli import AUDIT_SAVERS, ERASE_SAVERS, explain_out_of_memory, main
from erasure.concept import Concept
from erasure.config.registry import field_help_of, list_modules, load_class
from erasure.config.static_classes import load_static_class
from erasure.edits import Edit
from erasure.errors import MAX_MESSAGE_CHARS, MAX_VALUE_CHARS, UserError, to_one_line, unknown_value_error
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.loader import resolve_device
from erasure.methods.base import Method
from erasure.storage.run import check_output_folder
from tests import tiny
from tests.command_line import complaint_of, replace_command
from tests.factories import write_small_plan

LONG, DIGITS = "x" * 5000, "9" * 5000
WITHOUT_TORCH = [
    "audit",
    "audit none",
    "audit --bogus",
    "audit none --workers 0",
    "audit none --shard 9/2",
    "audit none --strength nan",
    "audit report",
    "audit compare one",
    "audit images",
    "audit sequence",
    "audit sequence none",
    "erase",
    "erase --concept x --method edsd",
    "erase --concept x --steps many",
    "erase --concept x --method uce --trajectories 3",
    "erase --concept x --kind colour",
    "erase --concept x --seed -1",
    "erase --concept x --seed 9223372036854775808",
    f"erase --concept x --seed {DIGITS}",
    "erase --concept x --out pyproject.toml/run",
    f"erase --concept x --out {LONG}",
    "erase --concept x --on none",
    "erase --concept x --lr nan",
    "erase --concept x --model ./nowhere",
    "erase --concept x --model pockett",
    "erase --concept x --report-to mlflow",
    "audit app --concept x --suite nope",
    "audit app --concept x --suite tests/none.yaml",
    "audit app --concept x --replay none.csv",
    "audit app --concept x --model ./nowhere",
    "methods --model ./nowhere",
    "export",
    "export none",
    "export none --format zip",
    "demo --out pyproject.toml",
    "doctor --all",
    "jobs statsu",
    "jobs run",
    "jobs run none.yaml",
    "jobs run-one none.json",
    "jobs leaderboard none",
    "methods --kind colour",
    "studio --port 99999999",
    "studio --port -1",
    "studio --auth ada",
    "studio --host 0.0.0.0",
    "studio --runs pyproject.toml",
    "eraze",
    f"{LONG}",
]


def test_wrong_arguments_do_not_wait_for_torch() -> None:
    """Nor does help; both would take many seconds."""
    code = """if True:
        import contextlib, io, json, sys
        from app.cli import main
        for words in json.load(sys.stdin):
            output = io.StringIO()
            with contextlib.redirect_stderr(output), contextlib.redirect_stdout(io.StringIO()):
                code = main(words.split(" "))
            lines = output.getvalue().splitlines()
            assert code == (0 if words.endswith("-h") else 1), (words[:80], code, lines)
            assert code == 0 or (len(lines) == 1 and lines[0].startswith("erasure: ") and len(lines[0]) < 2200), (words[:80], lines)
            assert "torch" not in sys.modules, words[:80]
    """
    helps = [
        f"{command} -h"
        for command in (*command_line.COMMANDS, "audit report", "audit sequence", "jobs run", "erase --method salun --kind object")
    ]
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps([*WITHOUT_TORCH, *helps]), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_fleet_that_cannot_be_is_refused_before_a_cluster_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = str(write_small_plan(tmp_path))
    for words, message in (
        (["--fleet", ""], "--fleet takes local, auto, or the HOST:PORT of a Ray cluster that this machine is part of; got ''"),
        (["--fleet", "head", "--dry-run"], "got 'head'"),
        (["--fleet", "local", "--worker-cores", "10000"], "--worker-cores 10000 is more than this machine has"),
        (["--worker-cores", "2"], "--worker-cores is for --fleet"),
    ):
        assert message in complaint_of(["jobs", "run", plan, *words], capsys), words
    assert not (tmp_path / "out").exists()


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("erasure ")


def help_of(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*argv, "--help"]) == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_help_shows_the_recipe_of_the_model_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = help_of(["erase"], capsys)
    assert "recipe for style on pocket models" in output
    assert "optimizer steps (the paper's: 1000) (default: 150)" in output
    assert "(default: 0.0002)" in help_of(["erase", "--kind", "object"], capsys)
    assert "(the paper's: xattn) (default: noxattn)" in help_of(
        ["erase", "--kind=nsfw", "--model", str(tiny.save_pipeline(tmp_path / "sd"))], capsys
    )
    output = help_of(["erase", "--method", "salun", "--model", "org/name"], capsys)
    assert "Values shown are the paper's" in output and "optimizer steps (default: 500)" in output


def test_audit_help_names_its_other_actions(capsys: pytest.CaptureFixture[str]) -> None:
    output = help_of(["audit"], capsys)
    assert all(action in output for action in ("report", "images", "compare", "sequence"))


@pytest.mark.parametrize("name", list_modules("erasure.methods"))
def test_a_static_class_equals_the_class(name: str) -> None:
    read, real = load_static_class("erasure.methods", name, "erasure.methods.base:Method"), load_class("erasure.methods", name, Method)
    assert [(f.name, f.type, f.default) for f in fields(read)] == [(f.name, f.type, f.default) for f in fields(real)]
    assert read.recipes == real.recipes  # type: ignore[attr-defined]
    assert field_help_of(read) == field_help_of(real) and field_help_of(read).keys() >= {f.name for f in fields(real)}
    assert read.__doc__ == real.__doc__


OUT_OF_RANGE = [
    ("esd", "trajectory_steps", 1001, "less than or equal to 1000"),
    ("esd", "steps", 10**12, "less than or equal to 1000000"),
    ("esd", "batch", 0, "greater than or equal to 1"),
    ("esd", "trajectories", 0, "greater than or equal to 1"),
    ("esd", "lr", float("inf"), "finite"),
    ("esd", "negative_guidance", float("nan"), "finite"),
    ("fia", "trajectory_steps", 5000, "less than or equal to 1000"),
    ("salun", "retain_trajectories", 10**9, "less than or equal to 100000"),
    ("sfd", "init_timestep", 1000, "less than or equal to 999"),
    ("sfd", "rank", -1, "greater than or equal to 1"),
    ("uce", "regularization", float("inf"), "finite"),
]


@pytest.mark.parametrize(("method", "name", "value", "complaint"), OUT_OF_RANGE)
def test_numbers_have_ranges(
    method: str, name: str, value: float, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["erase", "--concept", "neon", "--method", method, f"--{name.replace('_', '-')}", str(value), "--out", str(tmp_path / "x")]
    assert complaint in complaint_of(argv, capsys)
    assert not (tmp_path / "x").exists()
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({"jobs": [{"concept": "neon", "method": method, "fields": {name: value}}]}))
    assert complaint in complaint_of(["jobs", "run", str(path), "--dry-run"], capsys)


def test_a_schedule_of_other_length_has_its_own_range(model: StableDiffusion) -> None:
    with pytest.raises(UserError, match="1 to 1,000 steps"):
        model.sample(["a"], [0], steps=1001)


@pytest.mark.parametrize(
    ("device", "complaint"),
    [
        ("meta", "not one to compute on"),
        ("cuda:99", "cuda"),
        ("cpu:5", "cpu:0"),
        ("x", "unknown device"),
        ("", "unknown device"),
        ("vulkan", "not one"),
    ],
)
def test_unavailable_devices_are_refused(device: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        resolve_device(device)
    assert resolve_device("cpu").type == resolve_device("cpu:0").type == "cpu"


def test_impossible_output_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, complaint in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "a" / "b", "is a file"),
        (tmp_path / "a\0b", "NUL"),
        (tmp_path / ("é" * 200), "255 bytes"),
        (tmp_path.joinpath(*["x" * 200] * 25), "4,000"),
    ):
        with pytest.raises(UserError, match=complaint):
            check_output_folder(folder)
    assert check_output_folder(tmp_path / "new" / "deep") == tmp_path / "new" / "deep"
    assert not (tmp_path / "new").exists()


def test_messages_are_short_and_one_line() -> None:
    assert to_one_line("no model at 'runs/esd'; give one.") == "no model at 'runs/esd'; give one."
    path = "/home/ada/" + "long-folder/" * 12 + "model.safetensors"
    assert to_one_line(path) == path  # file names stay readable
    for long in (f"unknown method {LONG!r}.", f"unknown {'a b ' * 5000!r}."):
        assert len(to_one_line(long)) < MAX_VALUE_CHARS + 60 and "more ..." in to_one_line(long)
        assert to_one_line(to_one_line(long)) == to_one_line(long)
    assert len(to_one_line("a b " * 5000)) < MAX_MESSAGE_CHARS + 60
    assert to_one_line("a\nb\x1b[31mc\u2028d") == "a b\\x1b[31mc\\u2028d"
    assert str(UserError("a\nb")) == "a b"


def test_text_that_is_not_valid_unicode_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not text" in complaint_of(["erase", "--concept", "a\udcff", "--out", str(tmp_path / "x")], capsys)
    assert "not text" in complaint_of(["erase", "--concept", "a\0", "--out", str(tmp_path / "x")], capsys)
    for bad in ("a\ud800", "a\0b"):
        with pytest.raises(UserError, match="valid Unicode"):
            Concept(name=bad)
        with pytest.raises(UserError, match="valid Unicode"):
            Concept(name="a", prompts=(f"{{}} {bad}",))


def test_a_concept_that_the_suite_does_not_have_is_refused_before_its_erasure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(f"suite: pocket\nout: {tmp_path / 'out'}\njobs: [{{concept: [neon, watercolour]}}]\n")
    assert "Did you mean 'watercolor'" in complaint_of(["jobs", "run", str(path)], capsys)
    assert not (tmp_path / "out").exists()
    complaint = complaint_of(["demo", "--concept", "plain", "--out", str(tmp_path / "demo")], capsys)
    assert "'plain' is no style to erase" in complaint and "Choose one of neon, sketch" in complaint and not (tmp_path / "demo").exists()
    assert "Did you mean 'watercolor'" in complaint_of(["demo", "--concept", "watercolour", "--out", str(tmp_path / "demo")], capsys)


def test_a_full_disk_and_short_memory_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that the system refuses, a real allocation that fails; a fault of the program stays visible."""

    def writes(command: object) -> int:
        with Path("/dev/full").open("w") as file:
            file.write("x")
            file.flush()
        return 0

    def allocates(command: object) -> int:
        import torch

        torch.empty(2**60)
        return 0

    def fails(command: object) -> int:
        raise RuntimeError("a fault")

    replace_command(monkeypatch, "methods", writes)
    assert main(["methods"]) == 2 and "no room is left on the disk" in capsys.readouterr().err
    replace_command(monkeypatch, "methods", allocates)
    assert main(["methods"]) == 2 and "out of memory" in capsys.readouterr().err
    replace_command(monkeypatch, "methods", fails)
    with pytest.raises(RuntimeError, match="a fault"):
        main(["methods"])


def test_out_of_memory_names_the_options_that_help() -> None:
    on_gpu = explain_out_of_memory(["erase", "--concept", "neon", "--gradient-checkpointing"], on_gpu=True)
    assert "--offload all, --images-at-once 1, --batch 1, --optimizer adam8bit." in on_gpu and "--gradient-checkpointing" not in on_gpu
    assert "--offload" not in explain_out_of_memory(["audit", "runs/x"], on_gpu=False)
    assert "\n" not in on_gpu
    for words, savers in ((["erase"], ERASE_SAVERS), (["audit"], AUDIT_SAVERS)):
        flags = [part for option in savers for part in option.split()]
        assert command_line.parse_command_line([*words, *(["--concept", "x"] if words == ["erase"] else ["runs/x"]), *flags])


def test_the_option_of_another_method_is_answered_with_the_options_of_this_one(capsys: pytest.CaptureFixture[str]) -> None:
    complaint = complaint_of(["erase", "--concept", "x", "--method", "uce", "--steps", "5"], capsys)
    assert "uce has no --steps; it takes --erase-weight, " in complaint and "see erasure erase --method uce --help" in complaint
    complaint = complaint_of(["erase", "--concept", "x", "--method", "uce", "--erase-wieght", "5"], capsys)
    assert "Did you mean --erase-weight? See erasure erase --method uce --help" in complaint


def test_too_few_trajectories_are_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("erasure.loading.loader.load_model", lambda *_, **__: pytest.fail("it was loaded"))
    for model in ("pocket", str(tiny.save_pipeline(tmp_path / "sd")), "some-org/some-model"):
        complaint = complaint_of(["erase", "--concept", "x", "--model", model, "--trajectories", "2"], capsys)
        assert "prompts need as many --trajectories, got 2; raise it" in complaint


@pytest.mark.parametrize("words", ["jobs run none.yaml", "jobs run-one none.json"])
def test_a_missing_file_is_called_missing(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    complaint = complaint_of(words.split(), capsys)
    assert complaint == f"erasure: {words.split()[-1]} does not exist."


def test_only_near_names_are_suggested() -> None:
    assert "Did you mean" not in str(unknown_value_error("region", "safetensor", ["text-encoder", "full"]))
    assert "Did you mean" not in str(unknown_value_error("concept", "Van Gogh", ["a moon", "neon"]))
    assert "Did you mean 'esd'" in str(unknown_value_error("method", "ESDD", ["esd", "uce"]))


def test_a_missing_edit_has_one_wording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught:
        Edit.load(tmp_path / "none")
    assert complaint_of(["export", str(tmp_path / "none")], capsys) == f"erasure: {caught.value}"
