"""erasure export: what plain diffusers makes of the files, and which options are refused."""

import re
import stat
from pathlib import Path

import pytest
from safetensors.torch import save_file

from app.cli import main
from tests import tiny
from tests.command_line import FAST_FLAGS, complaint_of


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pipeline(tmp_path_factory.mktemp("base") / "tiny")


def test_export_lora_is_what_plain_diffusers_loads(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    from erasure.edits import Edit

    out = tmp_path / "run"
    assert (
        main(["erase", "--concept", "neon", "--model", str(base), "--out", str(out), "--region", "xattn-kv", "--lr", "1e-2", *FAST_FLAGS])
        == 0
    )
    assert main(["export", str(out), "--out", str(tmp_path / "lora"), "--rank", "32"]) == 0
    assert main(["export", str(out), "--format", "folder", "--out", str(tmp_path / "full")]) == 0

    def generate(pipe: StableDiffusionPipeline) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        return pipe(["neon"], num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt").images

    plain = generate(StableDiffusionPipeline.from_pretrained(base, safety_checker=None))
    with_lora = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    with_lora.load_lora_weights(str(tmp_path / "lora"))
    applied = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    Edit.load(out).apply(applied)
    erased = generate(applied)
    assert torch.allclose(generate(with_lora), erased, atol=2e-3)
    assert torch.equal(generate(StableDiffusionPipeline.from_pretrained(tmp_path / "full", safety_checker=None)), erased)
    assert (plain - erased).abs().max() > 1e-2
    assert "before-after-0.png" in (tmp_path / "lora" / "README.md").read_text()


def test_a_text_encoder_is_exported_alone(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    from erasure.edits import Edit

    few = ["--retain-prompts", "a dog", "--retain-trajectories", "2", "--attack-steps", "1", "--warmup", "0", "--lr", "1e-2"]
    out = tmp_path / "run"
    assert main(["erase", "--method", "advunlearn", "--concept", "neon", "--model", str(base), "--out", str(out), *FAST_FLAGS, *few]) == 0
    assert main(["export", str(out), "--format", "text-encoder", "--out", str(tmp_path / "encoder")]) == 0
    swapped = StableDiffusionPipeline.from_pretrained(
        base, text_encoder=CLIPTextModel.from_pretrained(tmp_path / "encoder"), safety_checker=None
    )
    applied = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    Edit.load(out).apply(applied)

    def generate(pipe: StableDiffusionPipeline) -> torch.Tensor:
        return pipe(["neon"], num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").images

    assert torch.equal(generate(swapped), generate(applied))
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
    assert (
        main(["erase", "--concept", "neon", "--model", str(base), "--out", str(run), "--region", "xattn", "--lr", "1e-2", *FAST_FLAGS]) == 0
    )
    capsys.readouterr()
    assert main(["export", str(run), "--rank", "2", "--out", str(tmp_path / "a")]) == 2
    output = capsys.readouterr()
    assert re.search(r"carries \d+ of \d+ tensors, error 0\.\d+ at rank 2 \(more than 0\.2\)", output.err)
    assert "use --format checkpoint or folder for all of it" in output.err and len(output.err.strip().splitlines()) == 1
    assert (tmp_path / "a" / "pytorch_lora_weights.safetensors").exists()  # written, and reported as incomplete
    assert "more than 0.2" in (tmp_path / "a" / "README.md").read_text().replace("\\", "")
    # another rank goes into the same folder, and so would any until one is good enough
    assert main(["export", str(run), "--rank", "3", "--out", str(tmp_path / "a")]) == 2
    assert "at rank 3" in capsys.readouterr().err and "at rank 3" in (tmp_path / "a" / "README.md").read_text().replace("\\", "")
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
    assert main(["export", str(run), "--rank", "3", "--out", str(tmp_path / "b")]) == 2  # its card says that it lost too much
    capsys.readouterr()
    assert main(["export", str(run), "--rank", "2", "--out", str(tmp_path / "c"), "--push-to-hub", "a/b", "--dry-run"]) == 2
    output = capsys.readouterr()
    assert "Nothing was sent" in output.err and "would send" not in output.out


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
        (["--format", "folder", "--rank", "4"], "--rank: only --format lora"),
        (["--format", "folder", "--layout", "kohya"], "--layout: only --format lora"),
        (["--format", "edit", "--accept-error"], "--accept-error: only --format lora"),
        (["--format", "text-encoder"], "does not live in the text encoder alone"),
        (["--layout", "compvis"], "compvis"),
        (["--format", "onnx"], "onnx"),
        (["--dry-run"], "--dry-run needs --push-to-hub"),
        (["--private"], "--private needs --push-to-hub"),
        (["--model", str(tiny.save_pipeline(tmp_path.parent / "other-base", seed=5))], "another base"),
        (["--format", "folder", "--model", str(tmp_path.parent / "other-base")], "another base"),
    ):
        assert words in complaint_of(["export", str(run), "--out", out, *options], capsys)
        assert sorted(tmp_path.rglob("*")) == before
    assert "not empty" in complaint_of(["export", str(run), "--out", str(tmp_path / "full")], capsys)
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_every_exported_file_has_the_mode_of_its_neighbors(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["erase", "--method", "uce", "--concept", "neon", "--model", str(base), "--dtype", "fp32", "--out", str(run)]) == 0
    for export_format in ("lora", "folder", "edit"):
        assert main(["export", str(run), "--format", export_format, "--out", str(tmp_path / export_format)]) == 0
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / export_format).rglob("*") if path.is_file()}
        (tmp_path / "neighbor").write_text("")
        assert modes == {stat.S_IMODE((tmp_path / "neighbor").stat().st_mode)}
