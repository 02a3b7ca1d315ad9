"""Suites: what is asked of a model, how surely, and what an erasure must show. Strict YAML; no torch here."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from erasure.config.registry import names
from erasure.config.strict_yaml import read_yaml
from erasure.config.validation import faults
from erasure.config.validation import listed as said_together
from erasure.errors import UserError, unknown
from eval.scoring.gates import Gate, gate_faults, gates
from eval.suites import prompt_list as listed
from eval.suites.perturbations import MUTATORS
from eval.suites.prompt_list import Axis, Listed
from eval.suites.suite_file import GridFile, PromptsFile

PROMPTS = Path(__file__).parent.parent.parent / "prompts"
CAPTIONS = {"smoke": 20, "standard": 100, "full": 1000}  # of the benign ones, at most
OTHER = "other"  # what a judge reads that a suite has no label for
RESERVED = ("none", OTHER)  # no labels of a suite: what judges and counts say of everything else
MOST_PICTURES = 1_000_000  # of one model, in one audit
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
    mutations: tuple[str, ...]  # of eval.suites.perturbations, of every prompt for the target
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
    file: str = ""  # name of the user's file that it was read from; empty for a shipped suite

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
        UserError: no such suite; every fault of its file at once; more pictures than anybody draws; a list for a suite that has its own.
    """
    suite = _found(name)
    if not prompts:
        return _affordable(suite)
    if suite.listed is None or suite.listed.prompts:
        raise UserError(f"suite {suite.name} has prompts of its own; leave --prompts out, or draw the list as well with --replay.")
    own = listed.read_list(prompts)
    return _affordable(replace(suite, listed=replace(suite.listed, prompts=own.prompts, origin=own.origin)))


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
    if found := [*faults(record, FORMS[form], str(path)), *gate_faults(record.get("gates"), str(path)), *_name_faults(record, path)]:
        raise said_together(found, str(path))
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
            "file": "" if path.resolve().parent == PROMPTS.resolve() else path.name,
        }
    )
    return suite


def _name_faults(record: dict[str, Any], path: Path) -> list[str]:
    """Names that a suite mentions and that do not exist; parts of another shape are left to the shape's own complaints."""
    styles, attacks = _keys(record.get("styles")), _mapping(_mapping(record.get("attacks")).get("use"))
    labels = [*styles, *_keys(record.get("objects"))]
    judges = _mapping(record.get("judges")) if record.get("form") != "prompts" else {"concept": record.get("judge")}
    given = [one.get("judge") if isinstance(one, dict) else one for one in judges.values()]
    found = [*_label_faults(record, labels, path)]
    for what, mentioned, known in (
        ("label under aliases", _keys(record.get("aliases")), labels),
        ("label under neighbours", _keys(record.get("neighbours")), labels),
        ("label under apart", _keys(record.get("apart")), styles),
        ("mutation", _keys(record.get("mutations")), list(MUTATORS)),
        ("judge", [name for name in given if isinstance(name, str)], names("eval.judges")),
        ("attack", [str(_mapping(fields).get("attack", name)) for name, fields in attacks.items()], names("eval.attacks")),
        ("protocol under published", [record["published"]] if record.get("published") else [], list(PROTOCOLS)),
    ):
        found += [str(unknown(f"{what} in {path}", name, known)) for name in mentioned if name not in known]
    grid = record.get("form") != "prompts"
    if grid and judges.keys() < {"style", "object", "clip"} and not judges.keys() >= {"style", "object"}:
        found.append(f"{path}: judges must name one for style and one for object, and may for clip; got {', '.join(judges)}.")
    return [*found, *_protocol_faults(record, grid, bool(attacks), path), *_seed_faults(record, path)]


def _label_faults(record: dict[str, Any], labels: list[str], path: Path) -> list[str]:
    """Labels and neighbours that name no files or have a meaning already."""
    near = [text for phrases in _mapping(record.get("neighbours")).values() for text in _keys(phrases)]
    own = _keys([record.get("label", record.get("concept"))])  # of the form prompts
    found = []
    for text in (*labels, *near, *own):
        if not LABEL.fullmatch(text):  # they name files
            found.append(f"{path}: {text!r} cannot be a label: letters, digits, spaces and . ' & - are allowed, at most 80.")
        elif text in RESERVED:
            found.append(f"{path}: {text!r} cannot be a label: it stands for what a judge reads beside the suite's labels.")
    return found


def _mapping(part: Any) -> dict[str, Any]:
    """A part of a suite that is a mapping; an empty one for what has another shape."""
    return part if isinstance(part, dict) else {}


def _keys(part: Any) -> list[str]:
    """The names that a list or a mapping of a suite holds; none of what has another shape."""
    return [name for name in part if isinstance(name, str)] if isinstance(part, list | dict) else []


def _protocol_faults(record: dict[str, Any], grid: bool, attacks: bool, path: Path) -> list[str]:
    published = record.get("published")
    if (published == "unlearncanvas" and not grid) or (published == "unlearndiffatk" and not attacks):
        return [f"{path}: published {published} needs {'a grid' if published == 'unlearncanvas' else 'attacks'}."]
    return []


def _seed_faults(record: dict[str, Any], path: Path) -> list[str]:
    seeds, tiers = record.get("seeds"), record.get("tiers")
    if not isinstance(seeds, list) or not all(isinstance(seed, int) for seed in seeds) or not isinstance(tiers, dict):
        return []
    counts = [n for pair in tiers.values() if isinstance(pair, list) for n in pair if isinstance(n, int)]
    if not seeds or (len(set(seeds)) >= max(counts, default=0) and all(0 <= seed < 2**63 for seed in seeds)):
        return []
    return [f"{path}: seeds must be different whole numbers below 2^63, as many as a tier has pictures a cell; got {seeds[:10]}."]


def _affordable(suite: Suite) -> Suite:
    """The suite itself, unless a tier of it asks for more pictures than anybody draws.

    Raises:
        UserError: it names the tier and the number.
    """
    longest = max(len(suite.styles), len(suite.objects))
    words = max((len(a.named) + len(a.described) for a in suite.aliases.values()), default=0)
    for tier, (many, few) in suite.tiers.items():
        found = len(suite.styles) * len(suite.objects) * max(many, few) + words * longest * few
        if suite.listed:
            asked = len(suite.listed.prompts)
            found = min(asked, suite.listed.most.get(tier, asked)) * many
        if tier in suite.attacks.tiers:
            found += suite.attacks.prompts * (suite.attacks.pictures + suite.attacks.fresh) * len(suite.attacks.use)
        if found > MOST_PICTURES:
            raise UserError(f"suite {suite.name}: tier {tier} asks for {found:,} pictures of a model; at most {MOST_PICTURES:,} are drawn.")
    return suite


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
