"""Hints about odd concepts come before the work, and a person must confirm."""

import io
import sys
from pathlib import Path

import pytest

from app.cli import main
from app.confirmation import confirm
from erasure.concept import Concept
from erasure.concept_hints import find_hints, hint_comma
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.loader import load_model
from tests import tiny


def test_hints_come_before_the_work(model: StableDiffusion, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "separate several concepts with ;, as in 'neon; sketch'" in hint_comma("neon, sketch")[0]
    assert hint_comma("neon") == hint_comma("Botticelli,") == []
    assert find_hints(model, [Concept(name="cat")]) == []
    assert "the text encoder reads 14" in find_hints(model, [Concept(name="cat" * 20)])[0]
    folder = tiny.save_pipeline(tmp_path / "base")
    argv = ["erase", "--method", "negative_prompt", "--model", str(folder), "--concept", "neon, sketch", "--out", str(tmp_path / "x")]
    assert main(argv) == 0
    output = capsys.readouterr().err
    assert output.index("separate several concepts with ;") < output.index("it will take")


def test_pocket_has_no_hints_for_its_own_concepts() -> None:
    pocket = load_model("pocket")
    assert find_hints(pocket, [Concept(name=name) for name in ("neon", "Stained Glass", "ada finch", "pixel art", "fish")]) == []
    assert "Did you mean 'watercolor'" in find_hints(pocket, [Concept(name="watercolour")])[0]
    assert "It knows" in find_hints(pocket, [Concept(name="zzz")])[0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("reply", "continues"), [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("", False)])
def test_a_person_must_confirm_and_a_script_need_not(reply: str, continues: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdin", io.StringIO(reply))
    assert confirm(["odd"])  # not a terminal
    monkeypatch.setattr(sys, "stdin", Terminal(reply))
    assert confirm(["odd"], yes=True) and confirm([])
    assert confirm(["odd"]) == continues
