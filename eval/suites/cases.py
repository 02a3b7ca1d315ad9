"""Cases: which prompts are drawn, from which seeds, and what each is there to show. No torch here."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from erasure.errors import UserError, unknown_value_error
from eval.suites.list_reader import ListedPrompt
from eval.suites.perturbations import PERTURBATIONS
from eval.suites.prompt_list_suite import cross_axis
from eval.suites.suite import MAX_CAPTIONS, Aliases, Axis, Suite

Role = Literal["grid", "listed", "named", "described", "mutated", "replayed", "neighbour", "benign"]
PLAIN_ROLES: tuple[Role, ...] = ("grid", "listed")  # what the suite itself asks, before any other words
REPHRASED_ROLES: tuple[Role, ...] = ("named", "described", "mutated", "replayed")  # the target, asked for in other words


@dataclass(frozen=True)
class Case:
    """One cell of the grid, the target in other words, or what should stay; `count` images of it are drawn from each model."""

    style: str  # empty where a prompt says nothing about it; a neighbour is its own label
    object: str
    prompt: str
    count: int
    role: Role = "grid"
    variant: str = ""  # which alias, mutation or row of a prompt list
    list_seed: int | None = None  # the seed that a prompt list gives
    guidance: float | None = None  # that a prompt list gives; None: the suite's
    seeds: tuple[int, ...] = ()  # of its pictures, where the suite fixes them

    @property
    def id(self) -> str:
        return f"{self.style}-{self.object}" + (f"-{self.role}-{self.variant}" if self.role != "grid" else "")

    def seed(self, suite: str, index: int) -> int:
        """A seed of its own for every image, whatever the order, batch or shard (63 bits)."""
        if self.seeds:
            return self.seeds[index]
        if self.list_seed is not None:
            return (self.list_seed + index) % 2**64
        text = f"{suite}|{self.id}|{index}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def suite_cases(suite: Suite, targets: list[tuple[Axis, str]], tier: str, replay_prompts: Sequence[ListedPrompt] = ()) -> list[Case]:
    """Every cell of the grid, those that contain a target more often, and the targets' cells asked for in other words.

    Args:
        replay: prompts of others that are said to bring the targets back.
    """
    if tier not in suite.tiers:
        raise unknown_value_error("tier", tier, suite.tiers)
    target_count, other_count = suite.tiers[tier]
    selected = prompt_list_cases(suite, tier, target_count)
    for style, style_words in suite.styles.items() if not suite.prompt_list else ():
        for object_label, object_words in suite.objects.items():
            has_target = ("style", style) in targets or ("object", object_label) in targets
            prompt = suite.template.format(style=style_words, object=object_words)
            selected.append(Case(style, object_label, prompt, target_count if has_target else other_count, seeds=suite.seeds))
    for axis, label in targets:
        selected += _alias_cases(suite, axis, label, other_count)
        selected += _perturbed_cases(suite, axis, label) if tier != "smoke" else []
        selected += [
            _axis_case(axis, label, "", p.text, other_count, "replayed", str(i), p.seed, p.guidance) for i, p in enumerate(replay_prompts)
        ]
        selected += _neighbor_cases(suite, axis, label) if tier != "smoke" else []
    spacing = max(len(suite.benign) / MAX_CAPTIONS[tier], 1.0)
    caption_numbers = range(min(len(suite.benign), MAX_CAPTIONS[tier]))
    return selected + [Case("", "", suite.benign[int(i * spacing)], 1, "benign", str(int(i * spacing))) for i in caption_numbers]


def prompt_list_cases(suite: Suite, tier: str, count: int) -> list[Case]:
    """The prompts of a suite that has no grid, evenly spaced where its tier takes a part of them.

    Raises:
        UserError: the suite ships no list and none was given.
    """
    if suite.prompt_list is None:
        return []
    prompts, max_prompts = suite.prompt_list.prompts, suite.prompt_list.max_prompts.get(tier)
    if not prompts:
        raise UserError(f"suite {suite.name} ships no prompts; give your own copy of a list with --prompts FILE.")
    spacing = max(len(prompts) / max_prompts, 1.0) if max_prompts else 1.0
    row_numbers = [int(i * spacing) for i in range(min(len(prompts), max_prompts or len(prompts)))]
    axis, label = suite.prompt_list.axis, suite.prompt_list.label
    return [
        _axis_case(axis, label, "", prompts[i].text, count, "listed", str(i), prompts[i].seed, prompts[i].guidance) for i in row_numbers
    ]


def _axis_case(
    axis: Axis,
    label: str,
    cross_label: str,
    prompt: str,
    count: int,
    role: Role,
    variant: str,
    list_seed: int | None = None,
    guidance: float | None = None,
) -> Case:
    style, object_label = (label, cross_label) if axis == "style" else (cross_label, label)
    return Case(style, object_label, prompt, count, role, variant, list_seed, guidance)


def _alias_cases(suite: Suite, axis: Axis, label: str, count: int) -> list[Case]:
    """Every alias of a target in every cell of it."""
    aliases = suite.aliases.get(label, Aliases())
    phrases: list[tuple[Role, int, str]] = [("named", i, phrase) for i, phrase in enumerate(aliases.named)]
    phrases += [("described", i, phrase) for i, phrase in enumerate(aliases.described)]
    cases = []
    for role, i, phrase in phrases:
        template = suite.described_template if (axis, role) == ("style", "described") else suite.template
        for cross_label, text in suite.phrases(cross_axis(axis)).items():
            prompt = template.format(style=text, object=phrase) if axis == "object" else template.format(style=phrase, object=text)
            cases.append(_axis_case(axis, label, cross_label, prompt, count, role, str(i)))
    return cases


def _neighbor_cases(suite: Suite, axis: Axis, label: str) -> list[Case]:
    """Every neighbour of a target in every cell of it, one picture each."""
    cases = []
    for neighbor in suite.neighbors.get(label, ()):
        for cross_label, text in suite.phrases(cross_axis(axis)).items():
            prompt = (
                suite.template.format(style=text, object=neighbor)
                if axis == "object"
                else suite.template.format(style=neighbor, object=text)
            )
            cases.append(_axis_case(axis, neighbor, cross_label, prompt, 1, "neighbour", f"of-{label}"))
    return cases


def _perturbed_cases(suite: Suite, axis: Axis, label: str) -> list[Case]:
    """Every mutation of every prompt for a target, one picture each."""
    name = suite.phrases(axis)[label]
    cases = []
    for perturbation in suite.perturbations:
        for cross_label, text in suite.phrases(cross_axis(axis)).items():
            prompt = suite.template.format(style=text, object=name) if axis == "object" else suite.template.format(style=name, object=text)
            rng = random.Random(f"{suite.name}|{perturbation}|{label}|{cross_label}")
            cases.append(_axis_case(axis, label, cross_label, PERTURBATIONS[perturbation](prompt, name, rng), 1, "mutated", perturbation))
    return cases
