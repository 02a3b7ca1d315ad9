"""The command as a user types it: exit codes, one-line complaints, nothing written."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from app.cli import main
from erasure.loading import POCKET
from tests import tiny


def test_help_imports_nothing_heavy() -> None:
    heavy = "'torch', 'diffusers', 'transformers', 'gradio'"
    code = f"import sys; from app.cli import main; main(['--help']); print([m for m in ({heavy}) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base") / "tiny")


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
    assert "xattn-kv" in complain([*common, "neon", "--region", "xatn"], capsys)
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
    broken = tiny.folder(tmp_path / "broken")
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
    other = tiny.folder(tmp_path / "other", seed=5)
    capsys.readouterr()
    assert "another base" in complain(["export", str(out), "--model", str(other), "--out", str(tmp_path / "x")], capsys)


def test_export_lora_is_what_plain_diffusers_loads(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    from erasure.edit import Edit

    out = tmp_path / "run"
    assert main(["erase", "--concept", "neon", "--model", str(base), "--out", str(out), "--region", "xattn-kv", "--lr", "1e-2", *FAST]) == 0
    assert main(["export", str(out), "--out", str(tmp_path / "lora"), "--rank", "64"]) == 0
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
    assert main(["methods"]) == 0
    assert "esd" in capsys.readouterr().out
    code = main(["doctor"])
    said = capsys.readouterr().out
    assert "device" in said and "pocket_style" in said
    assert code == (0 if (POCKET / "judges" / "style.safetensors").exists() else 2)


def test_a_foreign_file_beside_an_edit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    save_file({"a": torch.zeros(1)}, tmp_path / "edit.safetensors")
    (tmp_path / "edit.json").write_text("[]")
    assert "no edit of format" in complain(["audit", str(tmp_path)], capsys)
