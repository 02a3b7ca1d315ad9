"""`erasure models`: the list, one model, wrong words, and no network."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import main
from erasure.edits import Edit
from erasure.families.released_models import RELEASED
from tests import tiny
from tests.command_line import complaint_of


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_the_list_names_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    output = capsys.readouterr().out
    for model in RELEASED:
        assert f"{model.name}  {model.source}\n" in output
    assert "pipeline    FluxPipeline, family flux" in output and "guidance as an input" in output
    assert "unet 2.57 B" in output and "from 8 GB" in output and "not measured on a GPU" in output
    assert max(map(len, output.splitlines())) <= 100


def test_one_model_from_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny.save_pipeline(tmp_path / "tiny")
    for weights in base.rglob("*.safetensors"):
        weights.unlink()
    assert main(["models", str(base), "--batch", "2", "--resolution", "32"]) == 0
    output = capsys.readouterr().out
    assert "32 x 32, classifier-free guidance" in output
    for word in ("unet", "text_encoder", "xattn-kv", "sampling", "esd (c)", "uce", "float16"):
        assert f"\n{word}" in output or word in output, word
    assert max(len(line) for line in output.splitlines()[1:]) <= 100


def test_an_edit_is_told_from_a_model(neon_edit: Edit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path / "edit", tmp_path / "edit" / "edit.json"):
        assert f"{path} is an edit, not a model; erasure models tiny shows" in complaint_of(["models", str(path)], capsys)


def test_wrong_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown model 'sdlx'. Did you mean 'sdxl'? Available: flux-dev" in complaint_of(["models", "sdlx"], capsys)
    assert "--batch must be between 1 and 100,000, got 0" in complaint_of(["models", "sdxl", "--batch", "0"], capsys)
    assert "name it" in complaint_of(["models", "--batch", "2"], capsys)
    assert "no images of 100 pixels a side; use a multiple of 64" in complaint_of(["models", "sd15", "--resolution", "100"], capsys)
    assert "no model_index.json" in complaint_of(["models", str(tmp_path)], capsys)
    file = tmp_path / "a.safetensors"
    file.touch()
    assert "is one file, which holds no configs" in complaint_of(["models", str(file)], capsys)


@pytest.mark.parametrize("words", [["--help"], ["sdlx"], ["sdxl", "--batch", "0"], []])
def test_words_are_answered_without_torch(words: list[str]) -> None:
    code = f"import sys; from app.cli import main; main({['models', *words]}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
