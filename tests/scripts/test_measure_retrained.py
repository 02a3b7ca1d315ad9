"""How retrained models are tested for the concept: with every wording of it, and with nonsense words from the same noise."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
import measure_retrained  # scripts are not a package

from erasure.concept_check import NONSENSE_WORDS
from erasure.families.stable_diffusion import StableDiffusion
from erasure.pocket.captions import OBJECT_WORDS, STYLE_WORDS
from eval.judges.pocket_style import PocketStyle
from tests import tiny
from tests.synthetic_edits import random_edit


@pytest.mark.parametrize("label", ["glass", "fish"])
def test_prompts_cover_every_wording_of_the_concept(label: str) -> None:
    words, requests = {**STYLE_WORDS, **OBJECT_WORDS}[label], measure_retrained.probe_requests(label)
    phrases = {
        wording: {phrase for phrase in (*words.names, *words.implicit) if any(phrase in prompt for prompt, _ in prompts_and_seeds)}
        for wording, prompts_and_seeds in requests.items()
    }
    assert (
        phrases["its name"] == {words.names[0]}
        and phrases["synonyms"] >= set(words.names[1:])
        and phrases["descriptions"] >= set(words.implicit)
    )
    assert not phrases["nonsense words"] and {w for w in NONSENSE_WORDS for prompt, _ in requests["nonsense words"] if w in prompt} == set(
        NONSENSE_WORDS
    )
    seeds = {tuple(seed for _, seed in prompts_and_seeds) for prompts_and_seeds in requests.values()}
    assert len(seeds) == 1 and {len(prompts_and_seeds) for prompts_and_seeds in requests.values()} == {200} and len(set(*seeds)) == 200


def test_differences_are_of_images_from_the_same_noise() -> None:
    first, second = [True] * 24 + [False] * 16, [True] * 12 + [False] * 28
    difference = measure_retrained.paired_hits_difference(first, second)
    assert difference.estimate == pytest.approx(0.3) and 0 < difference.low < 0.3 < difference.high
    assert measure_retrained.paired_hits_difference(second, first).estimate == pytest.approx(-0.3)


def test_cached_labels_belong_to_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = StableDiffusion(tiny.pipeline(size=16, levels=3), "tiny", "fp32")  # images of the judges' size
    generated: list[str] = []
    sample = StableDiffusion.sample

    def count_prompts(self: StableDiffusion, prompts: Any, *args: Any) -> torch.Tensor:
        generated.extend(prompts)
        return sample(self, prompts, *args)

    monkeypatch.setattr(StableDiffusion, "sample", count_prompts)
    monkeypatch.setattr(measure_retrained, "JUDGES", {"style": PocketStyle()})
    prompts_and_seeds, edit = [("a cat", 1), ("a dog", 2)], random_edit(model)
    for stack in ([], [], [edit], [edit]):
        labels, image = measure_retrained.judge_labels(model, stack, prompts_and_seeds, tmp_path, "test")
        assert len(labels["style"]) == 2 and image.is_file()
    assert generated == ["a cat", "a dog"] * 2
