"""Suites: what is asked of a model, how surely, and what an erasure must show. Strict YAML; no torch here."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from erasure.discover import names
from erasure.errors import UserError, unknown
from erasure.shapes import check
from erasure.strict_yaml import read_yaml
from eval import listed
from eval.gates import Gate, gates
from eval.listed import Axis, Listed
from eval.mutators import MUTATORS
from eval.suite_file import GridFile, PromptsFile

PROMPTS = Path(__file__).parent.parent / "prompts"
CAPTIONS = {"smoke": 20, "standard": 100, "full": 1000}  # of the benign ones, at most
LABEL = re.compile(r"\w[\w .'&-]{0,79}")
FORMS = {"unlearncanvas": GridFile, "prompts": PromptsFile}
PROTOCOLS = ("unlearncanvas", "unlearndiffatk")  # whose way of counting a report can show beside the corrected one


@dataclass(frozen=True)
class Aliases:
    """Other ways to ask for a concept."""

    named: tuple[str, ...] = ()  # synonyms
    described: tuple[str, ...] = ()  # descriptions that never name it


@dataclass(frozen=True)
class Attacks:
    """Which attacks a suite mounts, and how many pictures each may draw."""

    tiers: tuple[str, ...] = ()  # in which tiers
    prompts: int = 0  # attacked prompts
    pictures: int = 0  # that a search may draw of each
    fresh: int = 0  # of the prompt it found, from noise it has not seen
    use: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> fields; `attack` names the module where the name does not


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
    judges: dict[str, dict[str, Any]]  # axis, or "clip" for alignment -> fields of a judge; `judge` names it
    styles: dict[str, str]  # label -> how a prompt says it
    objects: dict[str, str]
    gates: tuple[Gate, ...] = ()
    neighbours: dict[str, tuple[str, ...]] = field(default_factory=dict)  # label -> what is near it and should stay
    benign: tuple[str, ...] = ()  # captions that have nothing to do with any concept
    attacks: Attacks = Attacks()
    features: dict[str, Any] = field(default_factory=lambda: {"extractor": "judge"})  # what distances of pictures are made of; empty: none
    seeds: tuple[int, ...] = ()  # of the pictures of every cell; empty: each picture has its own
    listed: Listed | None = None  # the form prompts: a list in place of the grid
    published: str = ""  # one of PROTOCOLS

    def words(self, axis: Axis) -> dict[str, str]:
        """Labels of an axis and how a prompt says them."""
        return self.styles if axis == "style" else self.objects

    def find(self, concept: str) -> tuple[Axis, str]:
        """The axis and label that a concept name means.

        Raises:
            UserError: the suite has no such concept; the nearest is named.
        """
        known: dict[str, tuple[Axis, str]] = {}
        if self.listed:
            known = {name.lower(): (self.listed.axis, self.listed.label) for name in self.listed.names}
        for axis, words in (("style", self.styles), ("object", self.objects)):
            for label, phrase in words.items():
                for name in (label, phrase, phrase.removeprefix("a ")):
                    known[name.lower()] = (axis, label)  # type: ignore[assignment]  # axis is one of the two literals
        found = known.get(concept.lower())
        if found is None:
            raise unknown(f"concept for suite {self.name}", concept, known)
        return found


def suite_names(complete: bool = False) -> list[str]:
    """The shipped suites; `complete`: only those that bring all of their prompts."""
    found = sorted(path.stem for path in PROMPTS.glob("*.yaml"))
    return [name for name in found if not complete or (asks := load_suite(name).listed) is None or asks.prompts]


def load_suite(name: str, prompts: str = "") -> Suite:
    """A suite by name, or by the path of a YAML file.

    Args:
        prompts: the user's copy of a list, for a suite of prompts that names none: a path, or hub:ORG/NAME/FILE.

    Raises:
        UserError: no such suite, unknown or missing keys, values of the wrong shape, a list for a suite that has its own prompts.
    """
    suite = _found(name)
    if not prompts:
        return suite
    if suite.listed is None or suite.listed.prompts:
        raise UserError(f"suite {suite.name} has prompts of its own; leave --prompts out, or draw the list as well with --replay.")
    own = listed.read_list(prompts)
    return replace(suite, listed=replace(suite.listed, prompts=own.prompts, origin=own.origin))


def _found(name: str) -> Suite:
    path = Path(name) if name.endswith((".yaml", ".yml")) else PROMPTS / f"{name}.yaml"
    if not path.is_file():
        raise unknown("suite", name, suite_names())
    return _checked(read_yaml(path), path)


def _checked(record: Any, path: Path) -> Suite:
    if not isinstance(record, dict):
        raise UserError(f"{path} must hold a mapping, got {type(record).__name__}.")
    form = str(record.get("form", "unlearncanvas"))
    if form not in FORMS:
        raise unknown(f"form in {path}", form, FORMS)
    check(record, FORMS[form], str(path))
    record = {key: value for key, value in record.items() if key != "form"} if form != "prompts" else listed.as_grid(record, path)
    suite = Suite(
        **{
            **record,
            "gates": gates(record["gates"], str(path)),
            "mutations": tuple(record["mutations"]),
            "aliases": {label: _aliases(words) for label, words in record["aliases"].items()},
            "judges": {part: {"judge": given} if isinstance(given, str) else dict(given) for part, given in record["judges"].items()},
            "neighbours": {label: tuple(near) for label, near in record.get("neighbours", {}).items()},
            "benign": _captions(path.parent / record["benign"]) if "benign" in record else (),
            "attacks": _attacks(record["attacks"]) if "attacks" in record else Attacks(),
            "seeds": tuple(record.get("seeds", ())),
            "tiers": {tier: tuple(pair) for tier, pair in record["tiers"].items()},
            "apart": tuple(record["apart"]),
        }
    )
    _known_names(suite, path)
    return suite


def _known_names(suite: Suite, path: Path) -> None:
    """Every name that a suite mentions is one that exists."""
    labels = [*suite.styles, *suite.objects]
    for text in (*labels, *(near for phrases in suite.neighbours.values() for near in phrases)):
        if not LABEL.fullmatch(text):  # they name files
            raise UserError(f"{path}: {text!r} cannot be a label: letters, digits, spaces and . ' & - are allowed, at most 80.")
    for key, found, known in (
        ("aliases", suite.aliases, labels),
        ("neighbours", suite.neighbours, labels),
        ("apart", suite.apart, suite.styles),
    ):
        for label in found:
            if label not in known:
                raise unknown(f"label under {key} in {path}", label, known)
    for name in suite.mutations:
        if name not in MUTATORS:
            raise unknown(f"mutation in {path}", name, MUTATORS)
    if suite.published not in ("", *PROTOCOLS):
        raise unknown(f"protocol under published in {path}", suite.published, PROTOCOLS)
    if (suite.published == "unlearncanvas" and suite.listed) or (suite.published == "unlearndiffatk" and not suite.attacks.use):
        raise UserError(f"{path}: published {suite.published} needs {'a grid' if suite.published == 'unlearncanvas' else 'attacks'}.")
    if set(suite.judges) - {"clip"} != ({suite.listed.axis} if suite.listed else {"style", "object"}):
        raise UserError(f"{path}: judges must name one for style and one for object, and may for clip; got {', '.join(suite.judges)}.")
    for given in suite.judges.values():
        if given.get("judge") not in names("eval.judges"):
            raise unknown(f"judge in {path}", str(given.get("judge")), names("eval.judges"))
    for name, fields in suite.attacks.use.items():
        if fields.get("attack", name) not in names("eval.attacks"):
            raise unknown(f"attack in {path}", str(fields.get("attack", name)), names("eval.attacks"))
    if suite.seeds and (
        len(set(suite.seeds)) < max(max(pair) for pair in suite.tiers.values()) or not all(0 <= s < 2**63 for s in suite.seeds)
    ):
        raise UserError(
            f"{path}: seeds must be different whole numbers below 2^63, as many as a tier has pictures a cell; got {list(suite.seeds)}."
        )


def _aliases(words: dict[str, list[str]]) -> Aliases:
    return Aliases(**{role: tuple(phrases) for role, phrases in words.items()})


def _captions(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise UserError(f"no captions at {path}; `benign` names a text file beside the suite, one caption a line.")
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"{path} holds no captions in UTF-8, one a line: {error}.") from error


def _attacks(record: dict[str, Any]) -> Attacks:
    use = {name: dict(fields or {}) for name, fields in record["use"].items()}
    return Attacks(**{**record, "tiers": tuple(record["tiers"]), "use": use})
