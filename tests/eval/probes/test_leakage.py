"""Label leakage: an edit that moves one word ranks it first; the control does not know it; equal norms; what cannot leak is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.cli import main
from erasure.concept import Concept
from erasure.edits import Edit
from erasure.edits.deltas import apply_delta
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.uce import UCE
from eval.probes.leakage import CONTROL, list_words, measure_leakage, randomize, rank_names, read_word_file
from tests import tiny
from tests.factories import RETAIN_PROMPTS, small_method

WORDS = ("dog", "sea", "tree", "house", "night", "boat", "moon", "star", "bird", "fish", "rain", "hill")
CAT = Concept(name="cat", kind="object")


@pytest.fixture
def edit(model: StableDiffusion, tmp_path: Path) -> Edit:
    return erase(model, [CAT], UCE(retain_prompts=RETAIN_PROMPTS, probe_prompts=RETAIN_PROMPTS), out=tmp_path / "edit")


def test_the_erased_name_is_first_and_the_control_does_not_know_it(model: StableDiffusion, edit: Edit) -> None:
    before = model.fingerprint()
    readings = measure_leakage(model, edit, WORDS)
    assert model.fingerprint() == before, "the model is left as it was"
    by_key = {(reading.edit == CONTROL, reading.reading): reading for reading in readings}
    assert by_key[False, "projections"].ranks[0].rank == 1
    assert by_key[False, "projections"].top[0] == "cat"
    assert {reading.words for reading in readings} == {len(WORDS) + 1}
    controls = [measure_leakage(model, edit, WORDS, seed)[2].ranks[0].rank for seed in range(6)]
    assert max(controls) > 3, "a random edit does not know the word"


def test_the_control_moves_as_far_as_the_edit(model: StableDiffusion, edit: Edit) -> None:
    control, parameters = randomize(model, edit, 3), model.parameters()
    assert control.moved_parameters() == edit.moved_parameters()
    for name in edit.moved_parameters():
        value = parameters[name].detach()
        norms = [(apply_delta(e.tensors, name, value).float() - value).norm().item() for e in (edit, control)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_a_zero_edit_leaks_nothing(model: StableDiffusion, edit: Edit) -> None:
    unchanged = Edit({name: model.parameters()[name].detach().clone() for name in edit.moved_parameters()}, edit.info)
    reading = measure_leakage(model, unchanged, WORDS)[0]
    assert reading.ranks[0].rank == len(WORDS) + 1, "words that moved equally far share the worst rank"


def test_ranks_by_hand() -> None:
    reading = rank_names("e", "r", ["b", "d"], ["a", "b", "c", "d"], torch.tensor([0.1, 0.4, 0.2, 0.4]))
    assert [rank.rank for rank in reading.ranks] == [2, 2] and set(reading.top[:2]) == {"b", "d"}


def test_a_guidance_edit_has_nothing_to_read(model: StableDiffusion, tmp_path: Path) -> None:
    guidance = erase(model, [CAT], small_method("negative_prompt"), out=tmp_path / "guidance")
    with pytest.raises(UserError, match="changes no weights"):
        measure_leakage(model, guidance, WORDS)


def test_words_of_a_tokenizer_and_of_a_file(model: StableDiffusion, tmp_path: Path) -> None:
    assert all(len(word) >= 3 and word.isalpha() for word in list_words(model))
    (tmp_path / "words.txt").write_text("dog\n\n sea \ndog\n")
    assert read_word_file(tmp_path / "words.txt") == ("dog", "sea")
    (tmp_path / "one.txt").write_text("dog\n")
    for name in ("one.txt", "missing.txt"):
        with pytest.raises(UserError, match=r"words|cannot be read"):
            read_word_file(tmp_path / name)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny.save_pipeline(tmp_path / "base")
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    options = ["--model", str(base), "--concept", "cat", "--kind", "object", "--out", str(tmp_path / "edit"), "--yes"]
    assert main(["erase", "--method", "uce", *options]) == 0
    capsys.readouterr()
    command = ["audit", "leakage", str(tmp_path / "edit"), "--word-list", str(tmp_path / "words.txt")]
    assert main([*command, "--out", str(tmp_path / "leakage.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| uce (cat) |") for line in lines) == sum(line.startswith(f"| {CONTROL} |") for line in lines) == 2
    assert (tmp_path / "leakage.json").read_text().count('"rank"') == 4


def test_every_concept_has_a_rank(model: StableDiffusion, edit: Edit) -> None:
    two = replace(edit.info, concepts=[{"name": "cat", "kind": "object"}, {"name": "old house", "kind": "object"}])
    reading = measure_leakage(model, Edit(edit.tensors, two), WORDS)[0]
    assert [rank.concept for rank in reading.ranks] == ["cat", "old house"] and reading.words == len(WORDS) + 2
