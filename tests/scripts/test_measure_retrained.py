"""How references are asked what they know: by every way of saying the concept, and by nonsense words from the same noise."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import measure_references as measure  # scripts are no package

from erasure.concept_check import NONSENSE_WORDS
from erasure.families.stable_diffusion import StableDiffusion
from erasure.pocket.captions import OBJECT_WORDS, STYLE_WORDS
from eval.judges.pocket_style import PocketStyle
from tests import tiny
from tests.erasure.edits.test_edit import edit_of


@pytest.mark.parametrize("label", ["glass", "fish"])
def test_the_concept_is_asked_for_by_all_its_words_and_by_none(label: str) -> None:
    words, found = {**STYLE_WORDS, **OBJECT_WORDS}[label], measure.probe_requests(label)
    said = {
        way: {phrase for phrase in (*words.names, *words.implicit) if any(phrase in prompt for prompt, _ in asked)}
        for way, asked in found.items()
    }
    assert said["its name"] == {words.names[0]} and said["synonyms"] >= set(words.names[1:]) and said["descriptions"] >= set(words.implicit)
    assert not said["nonsense words"] and {w for w in NONSENSE_WORDS for prompt, _ in found["nonsense words"] if w in prompt} == set(
        NONSENSE_WORDS
    )
    seeds = {tuple(seed for _, seed in asked) for asked in found.values()}
    assert len(seeds) == 1 and {len(asked) for asked in found.values()} == {200} and len(set(*seeds)) == 200


def test_differences_are_of_pictures_with_one_noise() -> None:
    first, second = [True] * 24 + [False] * 16, [True] * 12 + [False] * 28
    found = measure.paired_hits_difference(first, second)
    assert found.estimate == pytest.approx(0.3) and 0 < found.low < 0.3 < found.high
    assert measure.paired_hits_difference(second, first).estimate == pytest.approx(-0.3)


def test_what_was_read_is_kept_for_this_model_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = StableDiffusion(tiny.pipeline(size=16, levels=3), "tiny", "fp32")  # pictures of the judges' size
    drawn: list[str] = []
    sample = StableDiffusion.sample

    def counted(self: StableDiffusion, prompts: Any, *args: Any) -> torch.Tensor:
        drawn.extend(prompts)
        return sample(self, prompts, *args)

    monkeypatch.setattr(StableDiffusion, "sample", counted)
    monkeypatch.setattr(measure, "JUDGES", {"style": PocketStyle()})
    asked, edit = [("a cat", 1), ("a dog", 2)], edit_of(model)
    for stack in ([], [], [edit], [edit]):
        labels, picture = measure.judge_labels(model, stack, asked, tmp_path, "test")
        assert len(labels["style"]) == 2 and picture.is_file()
    assert drawn == ["a cat", "a dog"] * 2
