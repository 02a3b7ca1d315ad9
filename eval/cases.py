"""Suites and cases: which prompts are drawn, from which seeds, and what each is there to show."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from erasure.errors import UserError, unknown
from eval.gates import Gate, gates
from eval.mutators import MUTATORS
from eval.readers import Prompt

PROMPTS = Path(__file__).parent.parent / "prompts"
Role = Literal["grid", "named", "described", "mutated", "replayed"]
OTHERWISE: tuple[Role, ...] = ("named", "described", "mutated", "replayed")  # the target, asked for in other words
Axis = Literal["style", "object"]
TIERS = ("smoke", "standard", "full")
KEYS = {
    "name",
    "version",
    "form",
    "template",
    "described",
    "aliases",
    "mutations",
    "steps",
    "guidance",
    "tiers",
    "apart",
    "judges",
    "styles",
    "objects",
    "gates",
}


@dataclass(frozen=True)
class Aliases:
    """Other ways to ask for a concept."""

    named: tuple[str, ...] = ()  # synonyms
    described: tuple[str, ...] = ()  # descriptions that never name it


@dataclass(frozen=True)
class Suite:
    """A grid of objects and styles in UnlearnCanvas form (Zhang et al., arXiv:2402.11846), and what else asks for the same."""

    name: str
    version: int
    template: str
    described: str  # the template for a style that is described and not named
    aliases: dict[str, Aliases]  # by label of either axis
    mutations: tuple[str, ...]  # of eval.mutators, of every prompt for the target
    steps: int
    guidance: float
    tiers: dict[str, tuple[int, int]]  # images per target cell, per other cell
    apart: tuple[str, ...]  # styles that count in no rate of kept styles
    judges: dict[str, str]  # axis -> judge
    styles: dict[str, str]  # label -> how a prompt says it
    objects: dict[str, str]
    gates: tuple[Gate, ...] = ()

    def find(self, concept: str) -> tuple[Axis, str]:
        """The axis and label that a concept name means.

        Raises:
            UserError: the suite has no such concept; the nearest is named.
        """
        known: dict[str, tuple[Axis, str]] = {}
        for axis, words in (("style", self.styles), ("object", self.objects)):
            for label, phrase in words.items():
                for name in (label, phrase, phrase.removeprefix("a ")):
                    known[name.lower()] = (axis, label)  # type: ignore[assignment]  # axis is one of the two literals
        found = known.get(concept.lower())
        if found is None:
            raise unknown(f"concept for suite {self.name}", concept, known)
        return found


@dataclass(frozen=True)
class Case:
    """One cell of the grid, or the target asked for in other words; `count` images of it are drawn from each model."""

    style: str  # empty where a replayed prompt says nothing about it
    object: str
    prompt: str
    count: int
    role: Role = "grid"
    variant: str = ""  # which alias, mutation or row of a prompt list
    given: int | None = None  # the seed that a prompt list gives

    @property
    def id(self) -> str:
        return f"{self.style}-{self.object}" + (f"-{self.role}-{self.variant}" if self.role != "grid" else "")

    def seed(self, suite: str, index: int) -> int:
        """A seed of its own for every image, whatever the order, batch or shard (63 bits)."""
        if self.given is not None:
            return (self.given + index) % 2**64
        text = f"{suite}|{self.id}|{index}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def suite_names() -> list[str]:
    return sorted(path.stem for path in PROMPTS.glob("*.yaml"))


def load_suite(name: str) -> Suite:
    """A suite by name, or by the path of a YAML file.

    Raises:
        UserError: no such suite, unknown or missing keys, values of the wrong shape.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PROMPTS / f"{name}.yaml"
    if not path.is_file():
        raise unknown("suite", name, suite_names())
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no YAML: {str(error).splitlines()[0]}.") from error
    return _checked(record, path)


def _checked(record: Any, path: Path) -> Suite:
    if not isinstance(record, dict):
        raise UserError(f"{path} must hold a mapping, got {type(record).__name__}.")
    for key in record:
        if key not in KEYS:
            raise unknown(f"key in {path}", key, KEYS)
    if missing := KEYS - record.keys():
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}.")
    if record.pop("form") != "unlearncanvas":
        raise UserError(f"{path}: the form must be unlearncanvas.")
    try:
        tiers = {tier: (int(a), int(b)) for tier, (a, b) in record.pop("tiers").items()}
        record["gates"] = gates(record["gates"], str(path))
        record["mutations"] = tuple(record["mutations"])
        record["aliases"] = {label: _aliases(words) for label, words in record["aliases"].items()}
        suite = Suite(**{**record, "tiers": tiers, "apart": tuple(record["apart"])})
        for template in (suite.template, suite.described):
            template.format(style="", object="")
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: {error}.") from error
    if foreign := suite.aliases.keys() - suite.styles.keys() - suite.objects.keys():
        raise unknown(f"label under aliases in {path}", sorted(foreign)[0], [*suite.styles, *suite.objects])
    for name in suite.mutations:
        if name not in MUTATORS:
            raise unknown(f"mutation in {path}", str(name), MUTATORS)
    if set(tiers) != set(TIERS) or min(min(pair) for pair in tiers.values()) < 1:
        raise UserError(f"{path}: tiers must give two positive counts for each of {', '.join(TIERS)}.")
    return suite


def _aliases(words: dict[str, list[str]]) -> Aliases:
    return Aliases(**{role: tuple(str(phrase) for phrase in phrases) for role, phrases in words.items()})


def cases(suite: Suite, targets: list[tuple[Axis, str]], tier: str, replay: Sequence[Prompt] = ()) -> list[Case]:
    """Every cell of the grid, those that contain a target more often, and the targets' cells asked for in other words.

    Args:
        replay: prompts of others that are said to bring the targets back.
    """
    if tier not in suite.tiers:
        raise unknown("tier", tier, suite.tiers)
    many, few = suite.tiers[tier]
    found = []
    for style, style_words in suite.styles.items():
        for thing, thing_words in suite.objects.items():
            hit = ("style", style) in targets or ("object", thing) in targets
            prompt = suite.template.format(style=style_words, object=thing_words)
            found.append(Case(style, thing, prompt, many if hit else few))
    for axis, label in targets:
        found += _asked_otherwise(suite, axis, label, few)
        found += _mutated(suite, axis, label) if tier != "smoke" else []
        found += [_cell(axis, label, "", p.text, few, "replayed", str(i), p.seed) for i, p in enumerate(replay)]
    return found


def _cell(axis: Axis, label: str, cross: str, prompt: str, count: int, role: Role, variant: str, given: int | None = None) -> Case:
    style, thing = (label, cross) if axis == "style" else (cross, label)
    return Case(style, thing, prompt, count, role, variant, given)


def _asked_otherwise(suite: Suite, axis: Axis, label: str, count: int) -> list[Case]:
    """Every alias of a target in every cell of it."""
    words = suite.aliases.get(label, Aliases())
    said: list[tuple[Role, int, str]] = [("named", i, phrase) for i, phrase in enumerate(words.named)]
    said += [("described", i, phrase) for i, phrase in enumerate(words.described)]
    found = []
    for role, i, phrase in said:
        template = suite.described if (axis, role) == ("style", "described") else suite.template
        for cross, text in (suite.styles if axis == "object" else suite.objects).items():
            prompt = template.format(style=text, object=phrase) if axis == "object" else template.format(style=phrase, object=text)
            found.append(_cell(axis, label, cross, prompt, count, role, str(i)))
    return found


def _mutated(suite: Suite, axis: Axis, label: str) -> list[Case]:
    """Every mutation of every prompt for a target, one picture each."""
    name = (suite.styles if axis == "style" else suite.objects)[label]
    found = []
    for mutation in suite.mutations:
        for cross, text in (suite.styles if axis == "object" else suite.objects).items():
            prompt = suite.template.format(style=text, object=name) if axis == "object" else suite.template.format(style=name, object=text)
            rng = random.Random(f"{suite.name}|{mutation}|{label}|{cross}")
            found.append(_cell(axis, label, cross, MUTATORS[mutation](prompt, name, rng), 1, "mutated", mutation))
    return found
