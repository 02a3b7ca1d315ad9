"""Mutations of a prompt: each changes what it says it changes."""

import random

import pytest

from eval.suites.perturbations import PERTURBATIONS

PROMPT, NAME = "an image of a boat in the style of stained glass", "stained glass"


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_mutation_is_another_prompt_and_the_same_every_time(name: str) -> None:
    one, other = (PERTURBATIONS[name](PROMPT, NAME, random.Random(3)) for _ in range(2))
    assert one == other != PROMPT


@pytest.mark.parametrize("name", ["typo", "homoglyph", "spaced", "leet"])
def test_spoiled_names_leave_the_rest_and_lose_the_name(name: str) -> None:
    found = PERTURBATIONS[name](PROMPT, NAME, random.Random(0))
    assert found.startswith("an image of a boat in the style of ")
    assert NAME not in found


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
