"""Perturbations of a prompt: each changes what it claims to change."""

import random

import pytest

from eval.suites.perturbations import PERTURBATIONS

PROMPT, NAME = "an image of a boat in the style of stained glass", "stained glass"


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_perturbation_changes_the_prompt_and_is_deterministic(name: str) -> None:
    first, second = (PERTURBATIONS[name](PROMPT, NAME, random.Random(3)) for _ in range(2))
    assert first == second != PROMPT


@pytest.mark.parametrize("name", ["typo", "homoglyph", "spaced", "leet"])
def test_misspellings_change_only_the_name(name: str) -> None:
    prompt = PERTURBATIONS[name](PROMPT, NAME, random.Random(0))
    assert prompt.startswith("an image of a boat in the style of ")
    assert NAME not in prompt


def test_each_by_hand() -> None:
    rng = random.Random(0)
    assert PERTURBATIONS["spaced"]("a neon sign", "neon", rng) == "a n e o n sign"
    assert PERTURBATIONS["leet"]("neon", "neon", rng) == "n30n"
    assert PERTURBATIONS["negated"]("a boat in neon", "neon", rng) == "a boat in, no neon, without neon"
    assert sorted(PERTURBATIONS["shuffled"](PROMPT, NAME, rng).replace(NAME, "X").split()) == sorted(PROMPT.replace(NAME, "X").split())
    assert NAME in PERTURBATIONS["shuffled"](PROMPT, NAME, rng)
    swapped = PERTURBATIONS["typo"]("neon", "neon", rng)
    assert sorted(swapped) == sorted("neon") and swapped != "neon"
    assert PERTURBATIONS["typo"]("xx", "xx", rng) == "xxxx"
    assert len(PERTURBATIONS["homoglyph"]("neon", "neon", rng)) == 4
