"""The command as a user types it: exit codes, one-line complaints, nothing written."""

import contextlib
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from app.cli import main
from app.jobs.child_processes import run_shards
from erasure.config.registry import list_modules
from erasure.errors import UserError
from erasure.loading.loader import POCKET_FOLDER
from tests import tiny


def test_help_imports_nothing_heavy() -> None:
    heavy = "'torch', 'diffusers', 'transformers', 'gradio'"
    code = f"import sys; from app.cli import main; main(['--help']); print([m for m in ({heavy}) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pipeline(tmp_path_factory.mktemp("base") / "tiny")


def complain(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run, expect exit code 1 and one line on stderr, and return it."""
    capsys.readouterr()
    assert main(argv) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("erasure: ")
    return lines[0]


FAST = ["--steps", "2", "--batch", "1", "--walks", "4", "--walk-steps", "2", "--dtype", "fp32"]


def test_wrong_words(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    common = ["erase", "--model", str(base), "--out", str(out), "--concept"]
    assert "Did you mean 'esd'" in complain([*common, "neon", "--method", "edsd"], capsys)
    assert "did you mean 'xattn'" in complain([*common, "neon", "--region", "xatn"], capsys)
    assert "abc" in complain([*common, "neon", "--lr", "abc"], capsys)
    assert "needs a name" in complain([*common, "  "], capsys)
    assert "--concept" in complain(["erase", "--out", str(out)], capsys)
    assert "--concept" in complain([*common, "neon", "--concpt", "x"], capsys)
    assert "Did you mean 'erase'" in complain(["eraze"], capsys)
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
        assert words in complain(["erase", "--concept", "neon", "--out", str(out), "--model", str(model)], capsys)
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
    argv = ["erase", "--concept", "neon", "--model", str(base), "--out", str(out), *FAST]
    assert main(argv) == 0
    first = (out / "edit.safetensors").read_bytes()
    capsys.readouterr()
    assert "holds another job" in complain([*argv, "--seed", "1"], capsys)
    assert main(argv) == 0
    assert (out / "edit.safetensors").read_bytes() == first
    other = tiny.save_pipeline(tmp_path / "other", seed=5)
    capsys.readouterr()
    assert "another base" in complain(["export", str(out), "--model", str(other), "--out", str(tmp_path / "x")], capsys)


def test_export_lora_is_what_plain_diffusers_loads(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    from erasure.edits import Edit

    out = tmp_path / "run"
    assert main(["erase", "--concept", "neon", "--model", str(base), "--out", str(out), "--region", "xattn-kv", "--lr", "1e-2", *FAST]) == 0
    assert main(["export", str(out), "--out", str(tmp_path / "lora"), "--rank", "32"]) == 0
    assert main(["export", str(out), "--as", "folder", "--out", str(tmp_path / "full")]) == 0

    def draw(pipe: StableDiffusionPipeline) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        return pipe(["neon"], num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt").images

    plain = draw(StableDiffusionPipeline.from_pretrained(base, safety_checker=None))
    with_lora = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    with_lora.load_lora_weights(str(tmp_path / "lora"))
    applied = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    Edit.load(out).apply(applied)
    erased = draw(applied)
    assert torch.allclose(draw(with_lora), erased, atol=2e-3)
    assert torch.equal(draw(StableDiffusionPipeline.from_pretrained(tmp_path / "full", safety_checker=None)), erased)
    assert (plain - erased).abs().max() > 1e-2
    assert "before-after-0.png" in (tmp_path / "lora" / "README.md").read_text()


def test_doctor_and_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--kind", "object"]) == 0
    said = capsys.readouterr().out
    for name in list_modules("erasure.methods"):
        assert f"\n{name}  " in said
    assert "cost     104 UNet forwards" in said  # uce: the check whether the model knows the concept
    assert "choose" in said and "changes" in said
    code = main(["doctor"])
    said = capsys.readouterr().out
    assert "device" in said and "pocket_style" in said
    assert code == (0 if (POCKET_FOLDER / "judges" / "style.safetensors").exists() else 2)


def test_a_foreign_file_beside_an_edit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    save_file({"a": torch.zeros(1)}, tmp_path / "edit.safetensors")
    (tmp_path / "edit.json").write_text("[]")
    assert "is not an edit of format" in complain(["audit", str(tmp_path)], capsys)


PAIRS = ["--prompts", "a {} | a thing", "{} at night | night"]


def test_every_method_has_its_own_flags(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["erase", "--model", str(base), "--concept", "neon", "--dtype", "fp32"]
    assert main([*common, "--method", "uce", "--erase-scale", "2.0", "--out", str(tmp_path / "uce")]) == 0
    assert "--erase-scale" in complain([*common, "--method", "fia", "--erase-scale", "2.0", "--out", str(tmp_path / "x")], capsys)
    assert (
        main(
            [*common, "--method", "fia", *PAIRS, "--record-steps", "2", "--walk-steps", "3", "--r2", "0.1", "--out", str(tmp_path / "fia")]
        )
        == 0
    )
    assert main([*common, "--method", "sld", "--out", str(tmp_path / "sld")]) == 0
    assert not (tmp_path / "x").exists()


def test_what_a_method_cannot_do_is_said(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["erase", "--model", str(base), "--concept", "neon", "--dtype", "fp32", "--out", str(tmp_path / "x")]
    assert "is none" in complain([*common, "--preview", *FAST], capsys)
    assert "no mask at" in complain([*common, "--mask", str(tmp_path / "none"), *FAST], capsys)
    assert "equals the concept" in complain([*common, "--anchor", "Neon", *FAST], capsys)
    assert "no edit at" in complain([*common, "--on", str(tmp_path / "none"), *FAST], capsys)
    assert "--mask-fraction" in complain([*common, "--method", "salun", "--mask-fraction", "0", *FAST, "--retain-walks", "56"], capsys)
    assert not (tmp_path / "x" / "edit.json").exists()


def test_a_preview_writes_nothing(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["erase", "--model", str(base), "--concept", "neon", "--method", "uce", "--preview", "--out", str(tmp_path / "x")]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "collateral:" in said and "%  a photo of a" in said
    assert not (tmp_path / "x").exists()


def test_an_unknown_concept_is_warned_about(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["erase", "--model", str(base), "--concept", "neon", "--method", "negative_prompt", "--out", str(tmp_path / "x")]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warned) == 1 and "hardly knows 'neon'" in warned[0]


def test_an_edit_on_an_edit(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["erase", "--model", str(base), "--dtype", "fp32"]
    assert main([*common, "--concept", "neon", "--out", str(tmp_path / "a"), *FAST]) == 0
    assert main([*common, "--concept", "sketch", "--on", str(tmp_path / "a"), "--out", str(tmp_path / "b"), *FAST]) == 0
    assert "apply that one first" in complain(["export", str(tmp_path / "b"), "--as", "folder", "--out", str(tmp_path / "x")], capsys)


def test_a_text_encoder_is_exported_alone(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    from erasure.edits import Edit

    few = ["--retain", "a dog", "--retain-walks", "2", "--attack-steps", "1", "--warmup", "0", "--lr", "1e-2"]
    out = tmp_path / "run"
    assert main(["erase", "--method", "advunlearn", "--concept", "neon", "--model", str(base), "--out", str(out), *FAST, *few]) == 0
    assert main(["export", str(out), "--as", "text-encoder", "--out", str(tmp_path / "encoder")]) == 0
    swapped = StableDiffusionPipeline.from_pretrained(
        base, text_encoder=CLIPTextModel.from_pretrained(tmp_path / "encoder"), safety_checker=None
    )
    applied = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    Edit.load(out).apply(applied)

    def draw(pipe: StableDiffusionPipeline) -> torch.Tensor:
        return pipe(["neon"], num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").images

    assert torch.equal(draw(swapped), draw(applied))
    # norms and biases of so small an encoder are more of the edit than a LoRA may lose; its matrices are there in full
    assert main(["export", str(out), "--out", str(tmp_path / "lora"), "--rank", "32", "--accept-error"]) == 0
    with_lora = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    with_lora.load_lora_weights(str(tmp_path / "lora"))
    with_lora.fuse_lora()
    wanted = {key.removeprefix("text_model."): value for key, value in applied.text_encoder.state_dict().items()}
    fused = {key.removeprefix("text_model."): value for key, value in with_lora.text_encoder.state_dict().items()}
    matrices = [key for key in fused if key.endswith("base_layer.weight")]
    assert len(matrices) == 12
    assert all(torch.allclose(fused[key], wanted[key.replace("base_layer.", "")], atol=2e-3) for key in matrices)
    capsys.readouterr()


def test_a_lora_that_loses_too_much_is_not_exit_code_0(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    run = tmp_path / "run"
    assert main(["erase", "--concept", "neon", "--model", str(base), "--out", str(run), "--region", "xattn", "--lr", "1e-2", *FAST]) == 0
    capsys.readouterr()
    assert main(["export", str(run), "--rank", "2", "--out", str(tmp_path / "a")]) == 2
    said = capsys.readouterr()
    assert re.search(r"carries \d+ of \d+ tensors, error 0\.\d+ at rank 2 \(more than 0\.2\)", said.err)
    assert "use --as checkpoint for all of it" in said.err and len(said.err.strip().splitlines()) == 1
    assert (tmp_path / "a" / "pytorch_lora_weights.safetensors").exists()  # written, and said to be no full copy
    assert "more than 0.2" in (tmp_path / "a" / "README.md").read_text().replace("\\", "")
    (tmp_path / "a" / "mine.txt").write_text("mine")
    assert main(["export", str(run), "--rank", "2", "--out", str(tmp_path / "a"), "--accept-error"]) == 1  # it holds something else, too
    (tmp_path / "a" / "mine.txt").unlink()
    (tmp_path / "theirs").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "theirs" / "pytorch_lora_weights.safetensors")
    assert main(["export", str(run), "--rank", "2", "--out", str(tmp_path / "theirs"), "--accept-error"]) == 1
    assert "holds a LoRA of something else" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["pytorch_lora_weights.safetensors"]
    assert main(["export", str(run), "--rank", "2", "--out", str(tmp_path / "a"), "--accept-error"]) == 0  # the same command, accepted
    capsys.readouterr()
    assert main(["export", str(run), "--rank", "2", "--out", str(tmp_path / "b"), "--accept-error"]) == 0
    assert "carries" in capsys.readouterr().out
    assert main(["export", str(run), "--rank", "2", "--out", str(tmp_path / "c"), "--push-to-hub", "a/b", "--dry-run"]) == 2
    said = capsys.readouterr()
    assert "Nothing was sent" in said.err and "would send" not in said.out


def test_wrong_export_options_write_nothing(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["erase", "--method", "uce", "--concept", "neon", "--model", str(base), "--dtype", "fp32", "--out", str(run)]) == 0
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    out = str(tmp_path / "x")
    for options, words in (
        (["--rank", "0"], "at least 1, got 0"),
        (["--rank", "-4"], "at least 1, got -4"),
        (["--rank", "1000"], "give at most"),
        (["--rank", "many"], "many"),
        (["--as", "folder", "--rank", "4"], "--rank: only --as lora"),
        (["--as", "folder", "--layout", "kohya"], "--layout: only --as lora"),
        (["--as", "edit", "--accept-error"], "--accept-error: only --as lora"),
        (["--as", "text-encoder"], "does not live in the text encoder alone"),
        (["--layout", "compvis"], "compvis"),
        (["--as", "onnx"], "onnx"),
        (["--dry-run"], "--dry-run needs --push-to-hub"),
        (["--private"], "--private needs --push-to-hub"),
        (["--model", str(tiny.save_pipeline(tmp_path.parent / "other-base", seed=5))], "another base"),
        (["--as", "folder", "--model", str(tmp_path.parent / "other-base")], "another base"),
    ):
        assert words in complain(["export", str(run), "--out", out, *options], capsys)
        assert sorted(tmp_path.rglob("*")) == before
    assert "not empty" in complain(["export", str(run), "--out", str(tmp_path / "full")], capsys)
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_every_exported_file_has_the_mode_of_its_neighbors(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["erase", "--method", "uce", "--concept", "neon", "--model", str(base), "--dtype", "fp32", "--out", str(run)]) == 0
    for form in ("lora", "folder", "edit"):
        assert main(["export", str(run), "--as", form, "--out", str(tmp_path / form)]) == 0
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / form).rglob("*") if path.is_file()}
        (tmp_path / "neighbor").write_text("")
        assert modes == {stat.S_IMODE((tmp_path / "neighbor").stat().st_mode)}


def test_a_reader_that_goes_away_leaves_no_traceback() -> None:
    command = f"{sys.executable} -m app.cli methods --help | head -c 1; {sys.executable} -m app.cli doctor | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_workers_that_fail_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="2 of 2 workers failed"):
        run_shards([str(tmp_path / "none")], 2)
    assert "no edit" in capsys.readouterr().err
    assert "without --shard" in complain(["audit", str(tmp_path), "--workers", "2", "--shard", "1/2"], capsys)
    assert "from 1 to" in complain(["audit", str(tmp_path), "--workers", "0"], capsys)
    assert "from 1 to" in complain(["audit", str(tmp_path), "--workers", "100000"], capsys)


def test_a_worker_ends_with_whoever_started_it() -> None:
    worker = "from app.jobs.child_processes import die_with; import sys, time; die_with(int(sys.argv[1])); time.sleep(600)"
    starter = f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {worker!r}, str(os.getpid())]); print('on', flush=True)"
    parent = subprocess.Popen([sys.executable, "-c", f"{starter}; import time; time.sleep(600)"], stdout=subprocess.PIPE)
    assert parent.stdout is not None and parent.stdout.readline() == b"on\n"
    parent.kill()
    parent.communicate(timeout=120)  # the pipe ends when the worker, who holds it too, is gone


@pytest.mark.parametrize("command", ["audit", "audit answers", "audit sequence", "audit report", "erase", "export", "demo", "studio"])
def test_every_option_says_what_it_is(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A comment that the formatter moved to another line is no help text any more."""
    with contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    options = re.findall(r"^\W{1,3}(--\S.*)", capsys.readouterr().out, re.MULTILINE)
    assert options
    assert not [option for option in options if re.match(r"--\S+( \S+)?\s+\(default", option)]
