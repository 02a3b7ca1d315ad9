"""Cases: the prompts to generate, their seeds, and what each one tests. Imports no torch."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from erasure.errors import unknown_value_error
from eval.scoring.gates import Tier
from eval.suites.axes import Axis, cross_axis
from eval.suites.formats import Aliases, GridSuite, PromptListSuite, Suite, check_has_prompts
from eval.suites.list_reader import ListedPrompt
from eval.suites.perturbations import PERTURBATIONS

MAX_CAPTIONS: dict[Tier, int] = {"smoke": 20, "standard": 100, "full": 1000}  # most benign captions by tier
Role = Literal["grid", "prompt_list", "named", "described", "perturbed", "replayed", "neighbor", "benign"]
PLAIN_ROLES: tuple[Role, ...] = ("grid", "prompt_list")  # the suite's own prompts, not rephrased
REPHRASED_ROLES: tuple[Role, ...] = ("named", "described", "perturbed", "replayed")  # the target, asked for in other words
# Words that seeds are hashed from in place of the role. They keep the noise of a cell: with other words, its images would change.
SEED_WORDS: dict[Role, str] = {"prompt_list": "listed", "perturbed": "mutated", "neighbor": "neighbour"}


@dataclass(frozen=True)
class Case:
    """A prompt with a role: a cell of the grid, the target rephrased, or something to retain; each model generates `count` images."""

    style: str  # label; empty if the prompt says nothing about it; a neighbor is its own label
    object: str
    prompt: str
    count: int
    role: Role = "grid"
    variant: str = ""  # which alias, perturbation or row of a prompt list
    list_seed: int | None = None  # from the prompt list
    guidance: float | None = None  # from the prompt list; None: the suite's
    seeds: tuple[int, ...] = ()  # of the images, if the suite fixes them

    @property
    def id(self) -> str:
        """Unique name within a suite; file names start with it."""
        return self._name(self.role)

    @property
    def noise_key(self) -> str:
        """Stable text that seeds are derived from: the id, with the words of SEED_WORDS."""
        return self._name(SEED_WORDS.get(self.role, self.role))

    def _name(self, role: str) -> str:
        return f"{self.style}-{self.object}" + (f"-{role}-{self.variant}" if self.role != "grid" else "")

    def seed(self, suite: str, index: int) -> int:
        """Return the seed of an image, independent of order, batch and shard: below 2^63, or below 2^64 from a prompt list."""
        if self.seeds:
            return self.seeds[index]
        if self.list_seed is not None:
            return (self.list_seed + index) % 2**64
        text = f"{suite}|{self.noise_key}|{index}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def suite_cases(suite: Suite, targets: list[tuple[Axis, str]], tier: str, replay_prompts: Sequence[ListedPrompt] = ()) -> list[Case]:
    """Return all cases of a tier: the grid with the targets rephrased and their neighbors, or the prompt list; replayed prompts; captions.

    Cells of a target have more images than others. Tier smoke has no perturbed prompts and no neighbors.

    Args:
        targets: axis and label of each.
        replay_prompts: prompts from elsewhere that are claimed to bring the targets back.

    Raises:
        UserError: the suite has no such tier, or needs a prompt list and has none.
    """
    checked_tier = find_tier(suite, tier)
    match suite:
        case GridSuite():
            selected = grid_cases(suite, targets, checked_tier, replay_prompts)
        case PromptListSuite():
            selected = list_cases(suite, checked_tier)
            for axis, label in targets:
                selected += _replayed_cases(axis, label, replay_prompts, 1)
    return selected + benign_cases(suite.benign, checked_tier)


def find_tier(suite: Suite, name: str) -> Tier:
    """Return the tier of that name.

    Raises:
        UserError: the suite has no such tier.
    """
    tier = next((tier for tier in suite.tiers if tier == name), None)
    if tier is None:
        raise unknown_value_error("tier", name, suite.tiers)
    return tier


def grid_cases(suite: GridSuite, targets: list[tuple[Axis, str]], tier: Tier, replay_prompts: Sequence[ListedPrompt] = ()) -> list[Case]:
    """Return the cells of a grid, and for each target what asks for it in other words, and its neighbors."""
    count = suite.tiers[tier]
    selected = []
    for style, style_words in suite.styles.items():
        for object_label, object_words in suite.objects.items():
            has_target = ("style", style) in targets or ("object", object_label) in targets
            prompt = suite.template.format(style=style_words, object=object_words)
            selected.append(Case(style, object_label, prompt, count.target if has_target else count.other, seeds=suite.seeds))
    for axis, label in targets:
        selected += _alias_cases(suite, axis, label, count.other)
        selected += _perturbed_cases(suite, axis, label) if tier != "smoke" else []
        selected += _replayed_cases(axis, label, replay_prompts, count.other)
        selected += _neighbor_cases(suite, axis, label) if tier != "smoke" else []
    return selected


def list_cases(suite: PromptListSuite, tier: Tier) -> list[Case]:
    """Return the prompts of a prompt list, evenly spaced if the tier takes only some.

    Raises:
        UserError: the suite ships no list and none was given.
    """
    check_has_prompts(suite)
    spec = suite.tiers[tier]
    count = min(len(suite.prompts), spec.prompts or len(suite.prompts))
    spacing = len(suite.prompts) / count
    rows = [int(i * spacing) for i in range(count)]
    return [_listed_case(suite.axis, suite.label, "prompt_list", i, suite.prompts[i], spec.images) for i in rows]


def benign_cases(captions: Sequence[str], tier: Tier) -> list[Case]:
    """Return captions that have nothing to do with any concept, evenly spaced, one image each."""
    spacing = max(len(captions) / MAX_CAPTIONS[tier], 1.0)
    numbers = [int(i * spacing) for i in range(min(len(captions), MAX_CAPTIONS[tier]))]
    return [Case("", "", captions[number], 1, "benign", str(number)) for number in numbers]


def _replayed_cases(axis: Axis, label: str, prompts: Sequence[ListedPrompt], count: int) -> list[Case]:
    return [_listed_case(axis, label, "replayed", i, prompt, count) for i, prompt in enumerate(prompts)]


def _listed_case(axis: Axis, label: str, role: Role, row: int, prompt: ListedPrompt, count: int) -> Case:
    case = _axis_case(axis, label, "", prompt.text, count, role, str(row))
    return replace(case, list_seed=prompt.seed, guidance=prompt.guidance)


def _axis_case(
    axis: Axis,
    label: str,
    cross_label: str,
    prompt: str,
    count: int,
    role: Role,
    variant: str,
) -> Case:
    style, object_label = (label, cross_label) if axis == "style" else (cross_label, label)
    return Case(style, object_label, prompt, count, role, variant)


def _alias_cases(suite: GridSuite, axis: Axis, label: str, count: int) -> list[Case]:
    """Return every alias of a target in every cell of it."""
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


def _neighbor_cases(suite: GridSuite, axis: Axis, label: str) -> list[Case]:
    """Return every neighbor of a target in every cell of it, one image each."""
    cases = []
    for neighbor in suite.neighbors.get(label, ()):
        for cross_label, text in suite.phrases(cross_axis(axis)).items():
            prompt = (
                suite.template.format(style=text, object=neighbor)
                if axis == "object"
                else suite.template.format(style=neighbor, object=text)
            )
            cases.append(_axis_case(axis, neighbor, cross_label, prompt, 1, "neighbor", f"of-{label}"))
    return cases


def _perturbed_cases(suite: GridSuite, axis: Axis, label: str) -> list[Case]:
    """Return every perturbation of every prompt for a target, one image each."""
    name = suite.phrases(axis)[label]
    cases = []
    for perturbation in suite.perturbations:
        for cross_label, text in suite.phrases(cross_axis(axis)).items():
            prompt = suite.template.format(style=text, object=name) if axis == "object" else suite.template.format(style=name, object=text)
            rng = random.Random(f"{suite.name}|{perturbation}|{label}|{cross_label}")
            cases.append(_axis_case(axis, label, cross_label, PERTURBATIONS[perturbation](prompt, name, rng), 1, "perturbed", perturbation))
    return cases
