"""Cases: which prompts are drawn, from which seeds, and what each is there to show. No torch here."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from erasure.errors import UserError, unknown
from eval.suites.list_reader import Prompt
from eval.suites.perturbations import MUTATORS
from eval.suites.prompt_list import crossing
from eval.suites.suite import CAPTIONS, Aliases, Axis, Suite

Role = Literal["grid", "listed", "named", "described", "mutated", "replayed", "neighbour", "benign"]
PLAIN: tuple[Role, ...] = ("grid", "listed")  # what the suite itself asks, before any other words
OTHERWISE: tuple[Role, ...] = ("named", "described", "mutated", "replayed")  # the target, asked for in other words


@dataclass(frozen=True)
class Case:
    """One cell of the grid, the target in other words, or what should stay; `count` images of it are drawn from each model."""

    style: str  # empty where a prompt says nothing about it; a neighbour is its own label
    object: str
    prompt: str
    count: int
    role: Role = "grid"
    variant: str = ""  # which alias, mutation or row of a prompt list
    given: int | None = None  # the seed that a prompt list gives
    guidance: float | None = None  # that a prompt list gives; None: the suite's
    seeds: tuple[int, ...] = ()  # of its pictures, where the suite fixes them

    @property
    def id(self) -> str:
        return f"{self.style}-{self.object}" + (f"-{self.role}-{self.variant}" if self.role != "grid" else "")

    def seed(self, suite: str, index: int) -> int:
        """A seed of its own for every image, whatever the order, batch or shard (63 bits)."""
        if self.seeds:
            return self.seeds[index]
        if self.given is not None:
            return (self.given + index) % 2**64
        text = f"{suite}|{self.id}|{index}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def cases(suite: Suite, targets: list[tuple[Axis, str]], tier: str, replay: Sequence[Prompt] = ()) -> list[Case]:
    """Every cell of the grid, those that contain a target more often, and the targets' cells asked for in other words.

    Args:
        replay: prompts of others that are said to bring the targets back.
    """
    if tier not in suite.tiers:
        raise unknown("tier", tier, suite.tiers)
    many, few = suite.tiers[tier]
    found = listed(suite, tier, many)
    for style, style_words in suite.styles.items() if not suite.listed else ():
        for thing, thing_words in suite.objects.items():
            hit = ("style", style) in targets or ("object", thing) in targets
            prompt = suite.template.format(style=style_words, object=thing_words)
            found.append(Case(style, thing, prompt, many if hit else few, seeds=suite.seeds))
    for axis, label in targets:
        found += _asked_otherwise(suite, axis, label, few)
        found += _mutated(suite, axis, label) if tier != "smoke" else []
        found += [_cell(axis, label, "", p.text, few, "replayed", str(i), p.seed, p.guidance) for i, p in enumerate(replay)]
        found += _neighbours(suite, axis, label) if tier != "smoke" else []
    every = max(len(suite.benign) / CAPTIONS[tier], 1.0)
    chosen = range(min(len(suite.benign), CAPTIONS[tier]))
    return found + [Case("", "", suite.benign[int(i * every)], 1, "benign", str(int(i * every))) for i in chosen]


def listed(suite: Suite, tier: str, count: int) -> list[Case]:
    """The prompts of a suite that has no grid, evenly spaced where its tier takes a part of them.

    Raises:
        UserError: the suite ships no list and none was given.
    """
    if suite.listed is None:
        return []
    asked, most = suite.listed.prompts, suite.listed.most.get(tier)
    if not asked:
        raise UserError(f"suite {suite.name} ships no prompts; give your own copy of a list with --prompts FILE.")
    every = max(len(asked) / most, 1.0) if most else 1.0
    chosen = [int(i * every) for i in range(min(len(asked), most or len(asked)))]
    axis, label = suite.listed.axis, suite.listed.label
    return [_cell(axis, label, "", asked[i].text, count, "listed", str(i), asked[i].seed, asked[i].guidance) for i in chosen]


def _cell(
    axis: Axis,
    label: str,
    cross: str,
    prompt: str,
    count: int,
    role: Role,
    variant: str,
    given: int | None = None,
    guidance: float | None = None,
) -> Case:
    style, thing = (label, cross) if axis == "style" else (cross, label)
    return Case(style, thing, prompt, count, role, variant, given, guidance)


def _asked_otherwise(suite: Suite, axis: Axis, label: str, count: int) -> list[Case]:
    """Every alias of a target in every cell of it."""
    words = suite.aliases.get(label, Aliases())
    said: list[tuple[Role, int, str]] = [("named", i, phrase) for i, phrase in enumerate(words.named)]
    said += [("described", i, phrase) for i, phrase in enumerate(words.described)]
    found = []
    for role, i, phrase in said:
        template = suite.described if (axis, role) == ("style", "described") else suite.template
        for cross, text in suite.words(crossing(axis)).items():
            prompt = template.format(style=text, object=phrase) if axis == "object" else template.format(style=phrase, object=text)
            found.append(_cell(axis, label, cross, prompt, count, role, str(i)))
    return found


def _neighbours(suite: Suite, axis: Axis, label: str) -> list[Case]:
    """Every neighbour of a target in every cell of it, one picture each."""
    found = []
    for near in suite.neighbours.get(label, ()):
        for cross, text in suite.words(crossing(axis)).items():
            prompt = suite.template.format(style=text, object=near) if axis == "object" else suite.template.format(style=near, object=text)
            found.append(_cell(axis, near, cross, prompt, 1, "neighbour", f"of-{label}"))
    return found


def _mutated(suite: Suite, axis: Axis, label: str) -> list[Case]:
    """Every mutation of every prompt for a target, one picture each."""
    name = suite.words(axis)[label]
    found = []
    for mutation in suite.mutations:
        for cross, text in suite.words(crossing(axis)).items():
            prompt = suite.template.format(style=text, object=name) if axis == "object" else suite.template.format(style=name, object=text)
            rng = random.Random(f"{suite.name}|{mutation}|{label}|{cross}")
            found.append(_cell(axis, label, cross, MUTATORS[mutation](prompt, name, rng), 1, "mutated", mutation))
    return found
