"""Cases: the prompts to generate, their seeds, and what each one tests. Imports no torch."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from erasure.errors import UserError, unknown_value_error
from eval.records.fields import Role
from eval.suites.list_reader import ListedPrompt
from eval.suites.perturbations import PERTURBATIONS
from eval.suites.prompt_list_suite import cross_axis
from eval.suites.suite import MAX_CAPTIONS, Aliases, Axis, Suite

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
    """Return all cases of a tier: the grid or prompt list, the targets rephrased, their neighbors, and benign captions.

    Cells of a target have more images than others. Tier smoke has no perturbed prompts and no neighbors.

    Args:
        targets: axis and label of each.
        replay_prompts: prompts from elsewhere that are claimed to bring the targets back.

    Raises:
        UserError: the suite has no such tier, or needs a prompt list and has none.
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
    """Return the prompts of a suite without a grid, evenly spaced if the tier takes only some; empty for a suite with a grid.

    Args:
        count: images per prompt.

    Raises:
        UserError: the suite ships no list and none was given.
    """
    if suite.prompt_list is None:
        return []
    prompts, max_prompts = suite.prompt_list.prompts, suite.prompt_list.max_prompts.get(tier)
    if not prompts:
        raise UserError(f"suite {suite.name} ships no prompts; give your own copy of a list with --prompt-list FILE.")
    spacing = max(len(prompts) / max_prompts, 1.0) if max_prompts else 1.0
    row_numbers = [int(i * spacing) for i in range(min(len(prompts), max_prompts or len(prompts)))]
    axis, label = suite.prompt_list.axis, suite.prompt_list.label
    return [
        _axis_case(axis, label, "", prompt.text, count, "prompt_list", str(i), prompt.seed, prompt.guidance)
        for i, prompt in ((i, prompts[i]) for i in row_numbers)
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


def _neighbor_cases(suite: Suite, axis: Axis, label: str) -> list[Case]:
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


def _perturbed_cases(suite: Suite, axis: Axis, label: str) -> list[Case]:
    """Return every perturbation of every prompt for a target, one image each."""
    name = suite.phrases(axis)[label]
    cases = []
    for perturbation in suite.perturbations:
        for cross_label, text in suite.phrases(cross_axis(axis)).items():
            prompt = suite.template.format(style=text, object=name) if axis == "object" else suite.template.format(style=name, object=text)
            rng = random.Random(f"{suite.name}|{perturbation}|{label}|{cross_label}")
            cases.append(_axis_case(axis, label, cross_label, PERTURBATIONS[perturbation](prompt, name, rng), 1, "perturbed", perturbation))
    return cases
