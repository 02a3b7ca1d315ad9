"""The command as a user types it: exit codes, one-line error messages, nothing written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from app.cli import main
from app.jobs.child_processes import start_shard_processes
from erasure.config.registry import list_modules
from erasure.errors import Unfinished, UserError
from erasure.loading.loader import POCKET_FOLDER
from tests import tiny
from tests.command_line import FAST_FLAGS, complaint_of


def test_help_imports_nothing_heavy() -> None:
    heavy = "'torch', 'diffusers', 'transformers', 'gradio'"
    code = f"import sys; from app.cli import main; main(['--help']); print([m for m in ({heavy}) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pipeline(tmp_path_factory.mktemp("base") / "tiny")


def test_wrong_words(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    common = ["erase", "--model", str(base), "--out", str(out), "--concept"]
    assert "Did you mean 'esd'" in complaint_of([*common, "neon", "--method", "edsd"], capsys)
    assert "Did you mean 'xattn'" in complaint_of([*common, "neon", "--region", "xatn"], capsys)
    assert "abc" in complaint_of([*common, "neon", "--lr", "abc"], capsys)
    assert "needs a name" in complaint_of([*common, "  "], capsys)
    assert "--concept" in complaint_of(["erase", "--out", str(out)], capsys)
    assert "--concept" in complaint_of([*common, "neon", "--concpt", "x"], capsys)
    assert "Did you mean 'erase'" in complaint_of(["eraze"], capsys)
    assert not out.exists()


def test_wrong_models(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, empty = tmp_path / "run", tmp_path / "empty"
    empty.mkdir()
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((base / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()[:1000])
    broken = tiny.save_pipeline(tmp_path / "broken")
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    pickle = tmp_path / "model.ckpt"
    pickle.write_bytes(b"\x80\x04")
    for model, words in (
        (tmp_path / "gone", "no model at"),
        (empty, "model_index.json"),
        (torn, "torn.safetensors"),
        (broken, "broken"),
        (pickle, "never loaded"),
    ):
        assert words in complaint_of(["erase", "--concept", "neon", "--out", str(out), "--model", str(model)], capsys)
    assert not out.exists()


def test_hub_id_without_network(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "erase", "--concept", "x", "--model", "some-org/some-model", "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin", "HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and "some-org/some-model" in lines[0]


def test_a_run_folder_belongs_to_its_job(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    argv = ["erase", "--concept", "neon", "--model", str(base), "--out", str(out), *FAST_FLAGS]
    assert main(argv) == 0
    first = (out / "edit.safetensors").read_bytes()
    printed = capsys.readouterr().out
    assert f"wrote {out} (" in printed and "concept check included)" in printed
    assert f"Next: erasure audit {out} --suite sd, or erasure export {out}" in printed
    assert "holds the erasure of neon (esd) with other settings: its seed is 0, this one's is 1" in complaint_of(
        [*argv, "--seed", "1"], capsys
    )
    assert main(argv) == 0 and f"complete already: {out} (" in capsys.readouterr().out
    assert (out / "edit.safetensors").read_bytes() == first
    other = tiny.save_pipeline(tmp_path / "other", seed=5)
    capsys.readouterr()
    assert "another base" in complaint_of(["export", str(out), "--model", str(other), "--out", str(tmp_path / "x")], capsys)


def test_doctor_and_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--kind", "object"]) == 0
    output = capsys.readouterr().out
    for name in list_modules("erasure.methods"):
        assert f"\n{name}  " in output
    assert "cost     104 denoiser forwards" in output  # uce: the check whether the model knows the concept
    assert "choose" in output and "changes" in output
    code = main(["doctor"])
    output = capsys.readouterr().out
    assert "device" in output and "pocket_style" in output
    assert "pocket (judges: pocket_style, pocket_object) ready" in output
    assert "unlearncanvas (judges: unlearncanvas) not ready: UnlearnCanvas style classifier not found" in output
    assert code == (0 if (POCKET_FOLDER / "judges" / "style.safetensors").exists() else 2)


def test_an_edit_json_that_is_not_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    save_file({"a": torch.zeros(1)}, tmp_path / "edit.safetensors")
    (tmp_path / "edit.json").write_text("[]")
    assert "is not an edit of format" in complaint_of(["audit", str(tmp_path)], capsys)


PAIRS = ["--prompts", "a {} | a thing", "{} at night | night"]


def test_every_method_has_its_own_flags(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["erase", "--model", str(base), "--concept", "neon", "--dtype", "fp32"]
    assert main([*common, "--method", "uce", "--erase-weight", "2.0", "--out", str(tmp_path / "uce")]) == 0
    assert "--erase-weight" in complaint_of([*common, "--method", "fia", "--erase-weight", "2.0", "--out", str(tmp_path / "x")], capsys)
    assert (
        main(
            [
                *common,
                "--method",
                "fia",
                *PAIRS,
                "--record-steps",
                "2",
                "--trajectory-steps",
                "3",
                "--candidate-fraction",
                "0.1",
                "--out",
                str(tmp_path / "fia"),
            ]
        )
        == 0
    )
    assert main([*common, "--method", "sld", "--out", str(tmp_path / "sld")]) == 0
    assert not (tmp_path / "x").exists()


def test_what_a_method_cannot_do_is_refused(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["erase", "--model", str(base), "--concept", "neon", "--dtype", "fp32", "--out", str(tmp_path / "x")]
    assert "ESD is not one" in complaint_of([*common, "--preview", *FAST_FLAGS], capsys)
    assert "no mask at" in complaint_of([*common, "--mask", str(tmp_path / "none"), *FAST_FLAGS], capsys)
    assert "equals the concept" in complaint_of([*common, "--anchor", "Neon", *FAST_FLAGS], capsys)
    assert "no edit at" in complaint_of([*common, "--on", str(tmp_path / "none"), *FAST_FLAGS], capsys)
    assert "--mask-fraction" in complaint_of(
        [*common, "--method", "salun", "--mask-fraction", "0", *FAST_FLAGS, "--retain-trajectories", "56"], capsys
    )
    assert not (tmp_path / "x" / "edit.json").exists()


def test_a_preview_writes_nothing(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["erase", "--model", str(base), "--concept", "neon", "--method", "uce", "--preview", "--out", str(tmp_path / "x")]
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert "collateral:" in output and "%  a photo of a" in output
    assert not (tmp_path / "x").exists()


def test_an_unknown_concept_is_warned_about(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["erase", "--model", str(base), "--concept", "neon", "--method", "negative_prompt", "--out", str(tmp_path / "x")]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warned) == 1 and "hardly knows 'neon'" in warned[0]


def test_an_edit_on_an_edit(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["erase", "--model", str(base), "--dtype", "fp32"]
    assert main([*common, "--concept", "neon", "--out", str(tmp_path / "a"), *FAST_FLAGS]) == 0
    assert main([*common, "--concept", "sketch", "--on", str(tmp_path / "a"), "--out", str(tmp_path / "b"), *FAST_FLAGS]) == 0
    assert "apply that one first" in complaint_of(
        ["export", str(tmp_path / "b"), "--format", "folder", "--out", str(tmp_path / "x")], capsys
    )


def test_a_reader_that_goes_away_leaves_no_traceback() -> None:
    command = f"{sys.executable} -m app.cli methods --help | head -c 1; {sys.executable} -m app.cli doctor | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_workers_that_fail_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with start_shard_processes(2) as others, pytest.raises(UserError, match="2 of 3 workers failed"):
        others.begin([["--shard", f"{i}/3", str(tmp_path / "none")] for i in (2, 3)])
        others.wait()
    assert capsys.readouterr().err.count("no edit") == 2  # each of them says why
    with start_shard_processes(1) as others, pytest.raises(Unfinished, match="1 of 2 workers failed"):
        others.processes[0].kill()
        others.processes[0].wait()
        others.begin([["--shard", "2/2", str(tmp_path / "none")]])  # to a process that has ended
        others.wait()
    assert "cannot be given with --shard" in complaint_of(["audit", str(tmp_path), "--workers", "2", "--shard", "1/2"], capsys)
    assert "from 1 to" in complaint_of(["audit", str(tmp_path), "--workers", "0"], capsys)
    assert "from 1 to" in complaint_of(["audit", str(tmp_path), "--workers", "100000"], capsys)


def test_a_worker_ends_with_its_parent() -> None:
    worker = "from app.jobs.child_processes import exit_with_parent; import sys, time; exit_with_parent(int(sys.argv[1])); time.sleep(600)"
    starter = f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {worker!r}, str(os.getpid())]); print('on', flush=True)"
    parent = subprocess.Popen([sys.executable, "-c", f"{starter}; import time; time.sleep(600)"], stdout=subprocess.PIPE)
    assert parent.stdout is not None and parent.stdout.readline() == b"on\n"
    parent.kill()
    parent.communicate(timeout=120)  # the pipe ends when the worker, who holds it too, is gone


@pytest.mark.parametrize("command", ["audit", "audit images", "audit sequence", "audit report", "erase", "export", "demo", "studio"])
def test_every_option_has_a_help_text(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A comment that the formatter moved to another line is no help text any more."""
    assert main([*command.split(), "--help"]) == 0
    options = re.findall(r"^\W{1,3}(--\S.*)", capsys.readouterr().out, re.MULTILINE)
    assert options
    assert not [option for option in options if re.match(r"--\S+( \S+)?\s+\(default", option)]
