"""Suites: what is asked of a model, how surely, and what an erasure must show. Strict YAML; no torch here."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from erasure.config.registry import list_modules
from erasure.config.strict_yaml import read_strict_yaml
from erasure.config.validation import combine_errors as said_together
from erasure.config.validation import list_errors
from erasure.errors import UserError, unknown_value_error
from eval.scoring.gates import Gate, gate_faults, parse_gates
from eval.suites import prompt_list_suite as listed
from eval.suites.perturbations import PERTURBATIONS
from eval.suites.prompt_list_suite import Axis, PromptListSpec
from eval.suites.suite_schema import GridSuiteSchema, PromptListSuiteSchema

SUITES_FOLDER = Path(__file__).parent.parent.parent / "prompts"
MAX_CAPTIONS = {"smoke": 20, "standard": 100, "full": 1000}  # of the benign ones, at most
OTHER_LABEL = "other"  # what a judge reads that a suite has no label for
RESERVED_LABELS = ("none", OTHER_LABEL)  # no labels of a suite: what judges and counts say of everything else
MAX_IMAGES = 1_000_000  # of one model, in one audit
LABEL_PATTERN = re.compile(r"\w[\w .'&-]{0,79}")
SUITE_FORMATS = {"unlearncanvas": GridSuiteSchema, "prompts": PromptListSuiteSchema}
PUBLISHED_PROTOCOLS = ("unlearncanvas", "unlearndiffatk")  # whose way of counting a report can show beside the corrected one


@dataclass(frozen=True)
class Aliases:
    """Other ways to ask for a concept."""

    named: tuple[str, ...] = ()  # synonyms
    described: tuple[str, ...] = ()  # descriptions that never name it


@dataclass(frozen=True)
class SuiteAttacks:
    """Which attacks a suite mounts, and how many pictures each may draw."""

    tiers: tuple[str, ...] = ()  # in which tiers
    prompts: int = 0  # attacked prompts
    images: int = 0  # that a search may draw of each
    fresh_images: int = 0  # of the prompt it found, from noise it has not seen
    use: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> fields; `attack` names the module where the name does not


@dataclass(frozen=True)
class Suite:
    """A grid of objects and styles in UnlearnCanvas form (Zhang et al., arXiv:2402.11846), and what else asks for the same."""

    name: str
    version: int
    template: str
    described_template: str  # the template for a style that is described and not named
    aliases: dict[str, Aliases]  # by label of either axis
    perturbations: tuple[str, ...]  # of eval.suites.perturbations, of every prompt for the target
    steps: int
    guidance: float
    tiers: dict[str, tuple[int, int]]  # images per target cell, per other cell
    excluded: tuple[str, ...]  # styles that count in no rate of kept styles
    judges: dict[str, dict[str, Any]]  # axis, or "clip" for alignment -> fields of a judge; `judge` names it
    styles: dict[str, str]  # label -> how a prompt says it
    objects: dict[str, str]
    gates: tuple[Gate, ...] = ()
    neighbors: dict[str, tuple[str, ...]] = field(default_factory=dict)  # label -> what is near it and should stay
    benign: tuple[str, ...] = ()  # captions that have nothing to do with any concept
    attacks: SuiteAttacks = SuiteAttacks()
    features: dict[str, Any] = field(default_factory=lambda: {"extractor": "judge"})  # what distances of pictures are made of; empty: none
    seeds: tuple[int, ...] = ()  # of the pictures of every cell; empty: each picture has its own
    prompt_list: PromptListSpec | None = None  # the form prompts: a list in place of the grid
    published: str = ""  # one of PROTOCOLS
    file: str = ""  # name of the user's file that it was read from; empty for a shipped suite

    def phrases(self, axis: Axis) -> dict[str, str]:
        """Labels of an axis and how a prompt says them."""
        return self.styles if axis == "style" else self.objects

    def find_concept(self, concept: str) -> tuple[Axis, str]:
        """The axis and label that a concept name means.

        Raises:
            UserError: the suite has no such concept; the nearest is named.
        """
        concepts_by_name: dict[str, tuple[Axis, str]] = {}
        if self.prompt_list:
            concepts_by_name = {name.lower(): (self.prompt_list.axis, self.prompt_list.label) for name in self.prompt_list.names}
        for axis, phrases in (("style", self.styles), ("object", self.objects)):
            for label, phrase in phrases.items():
                for name in (label, phrase, phrase.removeprefix("a ")):
                    concepts_by_name[name.lower()] = (axis, label)  # type: ignore[assignment]  # axis is one of the two literals
        match = concepts_by_name.get(concept.lower())
        if match is None:
            raise unknown_value_error(f"concept for suite {self.name}", concept, concepts_by_name)
        return match


def suite_names(complete: bool = False) -> list[str]:
    """The shipped suites; `complete`: only those that bring all of their prompts."""
    suites = sorted(path.stem for path in SUITES_FOLDER.glob("*.yaml"))
    return [name for name in suites if not complete or (spec := load_suite(name).prompt_list) is None or spec.prompts]


def load_suite(name: str, prompts: str = "") -> Suite:
    """A suite by name, or by the path of a YAML file.

    Args:
        prompts: the user's copy of a list, for a suite of prompts that names none: a path, or hub:ORG/NAME/FILE.

    Raises:
        UserError: no such suite; every fault of its file at once; more pictures than anybody draws; a list for a suite that has its own.
    """
    suite = _load_suite_file(name)
    if not prompts:
        return _check_image_count(suite)
    if suite.prompt_list is None or suite.prompt_list.prompts:
        raise UserError(f"suite {suite.name} has prompts of its own; leave --prompts out, or draw the list as well with --replay.")
    own_list = listed.load_prompt_list(prompts)
    return _check_image_count(replace(suite, prompt_list=replace(suite.prompt_list, prompts=own_list.prompts, origin=own_list.origin)))


def _load_suite_file(name: str) -> Suite:
    path = Path(name) if name.endswith((".yaml", ".yml")) else SUITES_FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise unknown_value_error("suite", name, suite_names())
    return _parse_suite(read_strict_yaml(path), path)


def _parse_suite(record: Any, path: Path) -> Suite:
    if not isinstance(record, dict):
        raise UserError(f"{path} must hold a mapping, got {type(record).__name__}.")
    suite_format = str(record.get("form", "unlearncanvas"))
    if suite_format not in SUITE_FORMATS:
        raise unknown_value_error(f"form in {path}", suite_format, SUITE_FORMATS)
    if problems := [
        *list_errors(record, SUITE_FORMATS[suite_format], str(path)),
        *gate_faults(record.get("gates"), str(path)),
        *_name_faults(record, path),
    ]:
        raise said_together(problems, str(path))
    record = (
        {key: value for key, value in record.items() if key != "form"} if suite_format != "prompts" else listed.as_grid_record(record, path)
    )
    suite = Suite(
        **{
            **record,
            "gates": parse_gates(record["gates"], str(path)),
            "mutations": tuple(record["mutations"]),
            "aliases": {label: _parse_aliases(aliases) for label, aliases in record["aliases"].items()},
            "judges": {
                judge_part: {"judge": judge_spec} if isinstance(judge_spec, str) else dict(judge_spec)
                for judge_part, judge_spec in record["judges"].items()
            },
            "neighbours": {label: tuple(neighbors) for label, neighbors in record.get("neighbours", {}).items()},
            "benign": _read_captions(path.parent / record["benign"]) if "benign" in record else (),
            "attacks": _parse_attacks(record["attacks"]) if "attacks" in record else SuiteAttacks(),
            "seeds": tuple(record.get("seeds", ())),
            "tiers": {tier: tuple(counts) for tier, counts in record["tiers"].items()},
            "apart": tuple(record["apart"]),
            "file": "" if path.resolve().parent == SUITES_FOLDER.resolve() else path.name,
        }
    )
    return suite


def _name_faults(record: dict[str, Any], path: Path) -> list[str]:
    """Names that a suite mentions and that do not exist; parts of another shape are left to the shape's own complaints."""
    styles, attacks = _names_in(record.get("styles")), _mapping_or_empty(_mapping_or_empty(record.get("attacks")).get("use"))
    labels = [*styles, *_names_in(record.get("objects"))]
    judges = _mapping_or_empty(record.get("judges")) if record.get("form") != "prompts" else {"concept": record.get("judge")}
    judge_names = [judge_spec.get("judge") if isinstance(judge_spec, dict) else judge_spec for judge_spec in judges.values()]
    problems = [*_label_faults(record, labels, path)]
    for noun, mentioned, allowed in (
        ("label under aliases", _names_in(record.get("aliases")), labels),
        ("label under neighbours", _names_in(record.get("neighbours")), labels),
        ("label under apart", _names_in(record.get("apart")), styles),
        ("mutation", _names_in(record.get("mutations")), list(PERTURBATIONS)),
        ("judge", [name for name in judge_names if isinstance(name, str)], list_modules("eval.judges")),
        ("attack", [str(_mapping_or_empty(fields).get("attack", name)) for name, fields in attacks.items()], list_modules("eval.attacks")),
        ("protocol under published", [record["published"]] if record.get("published") else [], list(PUBLISHED_PROTOCOLS)),
    ):
        problems += [str(unknown_value_error(f"{noun} in {path}", name, allowed)) for name in mentioned if name not in allowed]
    grid = record.get("form") != "prompts"
    if grid and judges.keys() < {"style", "object", "clip"} and not judges.keys() >= {"style", "object"}:
        problems.append(f"{path}: judges must name one for style and one for object, and may for clip; got {', '.join(judges)}.")
    return [*problems, *_protocol_faults(record, grid, bool(attacks), path), *_seed_faults(record, path)]


def _label_faults(record: dict[str, Any], labels: list[str], path: Path) -> list[str]:
    """Labels and neighbours that name no files or have a meaning already."""
    neighbors = [text for phrases in _mapping_or_empty(record.get("neighbours")).values() for text in _names_in(phrases)]
    list_labels = _names_in([record.get("label", record.get("concept"))])  # of the form prompts
    problems = []
    for text in (*labels, *neighbors, *list_labels):
        if not LABEL_PATTERN.fullmatch(text):  # they name files
            problems.append(f"{path}: {text!r} cannot be a label: letters, digits, spaces and . ' & - are allowed, at most 80.")
        elif text in RESERVED_LABELS:
            problems.append(f"{path}: {text!r} cannot be a label: it stands for what a judge reads beside the suite's labels.")
    return problems


def _mapping_or_empty(value: Any) -> dict[str, Any]:
    """A part of a suite that is a mapping; an empty one for what has another shape."""
    return value if isinstance(value, dict) else {}


def _names_in(value: Any) -> list[str]:
    """The names that a list or a mapping of a suite holds; none of what has another shape."""
    return [name for name in value if isinstance(name, str)] if isinstance(value, list | dict) else []


def _protocol_faults(record: dict[str, Any], grid: bool, attacks: bool, path: Path) -> list[str]:
    published = record.get("published")
    if (published == "unlearncanvas" and not grid) or (published == "unlearndiffatk" and not attacks):
        return [f"{path}: published {published} needs {'a grid' if published == 'unlearncanvas' else 'attacks'}."]
    return []


def _seed_faults(record: dict[str, Any], path: Path) -> list[str]:
    seeds, tiers = record.get("seeds"), record.get("tiers")
    if not isinstance(seeds, list) or not all(isinstance(seed, int) for seed in seeds) or not isinstance(tiers, dict):
        return []
    counts = [n for tier_counts in tiers.values() if isinstance(tier_counts, list) for n in tier_counts if isinstance(n, int)]
    if not seeds or (len(set(seeds)) >= max(counts, default=0) and all(0 <= seed < 2**63 for seed in seeds)):
        return []
    return [f"{path}: seeds must be different whole numbers below 2^63, as many as a tier has pictures a cell; got {seeds[:10]}."]


def _check_image_count(suite: Suite) -> Suite:
    """The suite itself, unless a tier of it asks for more pictures than anybody draws.

    Raises:
        UserError: it names the tier and the number.
    """
    longest_axis = max(len(suite.styles), len(suite.objects))
    alias_count = max((len(a.named) + len(a.described) for a in suite.aliases.values()), default=0)
    for tier, (target_count, other_count) in suite.tiers.items():
        image_count = len(suite.styles) * len(suite.objects) * max(target_count, other_count) + alias_count * longest_axis * other_count
        if suite.prompt_list:
            prompt_count = len(suite.prompt_list.prompts)
            image_count = min(prompt_count, suite.prompt_list.max_prompts.get(tier, prompt_count)) * target_count
        if tier in suite.attacks.tiers:
            image_count += suite.attacks.prompts * (suite.attacks.images + suite.attacks.fresh_images) * len(suite.attacks.use)
        if image_count > MAX_IMAGES:
            raise UserError(
                f"suite {suite.name}: tier {tier} asks for {image_count:,} pictures of a model; at most {MAX_IMAGES:,} are drawn."
            )
    return suite


def _parse_aliases(phrases_by_role: dict[str, list[str]]) -> Aliases:
    return Aliases(**{role: tuple(phrases) for role, phrases in phrases_by_role.items()})


def _read_captions(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise UserError(f"no captions at {path}; `benign` names a text file beside the suite, one caption a line.")
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"{path} holds no captions in UTF-8, one a line: {error}.") from error


def _parse_attacks(record: dict[str, Any]) -> SuiteAttacks:
    use = {name: dict(fields or {}) for name, fields in record["use"].items()}
    return SuiteAttacks(**{**record, "tiers": tuple(record["tiers"]), "use": use})
