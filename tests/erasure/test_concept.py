"""Concepts: their prompts, anchors, and the mistakes that are refused."""

import pytest

from erasure.concept import Concept, parse_concepts
from erasure.errors import UserError


def test_prompts_give_both_sides() -> None:
    concept = Concept(name="boat", kind="object", prompts=("{}", "a {} in neon style | neon style"))
    assert concept.prompt_pairs() == [("boat", ""), ("a boat in neon style", "neon style")]


def test_an_anchor_takes_the_concepts_place() -> None:
    concept = Concept(name="boat", kind="object", prompts=("a {} in neon style | neon style",), anchor="car")
    assert concept.prompt_pairs() == [("a boat in neon style", "a car in neon style")]


def test_one_text_is_one_prompt() -> None:
    concept = Concept(name="boat", prompts="a {} picture", aliases="ship")
    assert (concept.prompts, concept.aliases) == (("a {} picture",), ("ship",))
    assert Concept(name="boat", prompts=["a {}"]) == Concept(name="boat", prompts=("a {}",))


def test_several_concepts_are_separated_by_semicolons() -> None:
    assert [c.name for c in parse_concepts("Van Gogh; Monet ", kind="style")] == ["Van Gogh", "Monet"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Concept(name=" "), "needs a name"),
        (lambda: parse_concepts("a;;b", kind="style"), "needs a name"),
        (lambda: parse_concepts(" ; ", kind="style"), "needs a name"),
        (lambda: parse_concepts("a;A", kind="style"), "named twice"),
        (lambda: Concept(name="cat", anchor="Cat"), "equals the concept"),
        (lambda: Concept(name="cat", prompts=("a cat",)), "exactly one"),
        (lambda: Concept(name="cat", kind="stile"), "Did you mean 'style'"),  # type: ignore[arg-type]
        (lambda: Concept(name=3), "name must be text, got 3"),  # type: ignore[arg-type]
        (lambda: Concept(name="cat", prompts=3), "prompts must be a list of texts, got 3"),  # type: ignore[arg-type]
        (lambda: Concept(name="cat", aliases=[None]), "aliases must be a list of texts"),  # type: ignore[list-item]
    ],
)
def test_mistakes_are_named(make, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()
