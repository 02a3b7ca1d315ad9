"""Suites: the prompts of an audit, its sample sizes, judges and attacks, and the gates of an erasure. Strict YAML; imports no torch."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from erasure.config.registry import list_modules
from erasure.config.strict_yaml import read_strict_yaml
from erasure.config.validation import combine_errors, list_errors
from erasure.errors import UserError, unknown_value_error
from eval.records.gates import Gate, gate_faults, parse_gates
from eval.suites import prompt_list_suite
from eval.suites.perturbations import PERTURBATIONS
from eval.suites.prompt_list_suite import Axis, PromptListSpec
from eval.suites.suite_schema import GridSuiteSchema, PromptListSuiteSchema

SUITES_FOLDER = Path(__file__).parent.parent.parent / "prompts"
MAX_CAPTIONS = {"smoke": 20, "standard": 100, "full": 1000}  # most benign captions by tier
OTHER_LABEL = "other"  # stands for every label that a judge reads and the suite lacks
RESERVED_LABELS = ("none", OTHER_LABEL)  # no label of a suite may have these names
MAX_IMAGES = 1_000_000  # of one model in one audit
LABEL_PATTERN = re.compile(r"\w[\w .'&-]{0,79}")
SUITE_FORMATS = {"grid": GridSuiteSchema, "prompt_list": PromptListSuiteSchema}
PUBLISHED_PROTOCOLS = ("unlearncanvas", "unlearndiffatk")  # protocols whose figures a report can show beside the corrected ones


@dataclass(frozen=True)
class Aliases:
    """Other ways to ask for a concept."""

    named: tuple[str, ...] = ()  # synonyms
    described: tuple[str, ...] = ()  # descriptions that never name it


@dataclass(frozen=True)
class SuiteAttacks:
    """The attacks of a suite and their budgets."""

    tiers: tuple[str, ...] = ()  # tiers that run attacks
    prompts: int = 0  # number of attacked prompts
    images: int = 0  # that a search may generate per prompt
    fresh_images: int = 0  # per prompt that a search found, from noise that it has not seen
    use: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> fields; `attack` names the module if the name does not


@dataclass(frozen=True)
class Suite:
    """A grid of objects and styles in UnlearnCanvas form (Zhang et al., arXiv:2402.11846), or a prompt list, with all its settings."""

    name: str
    version: int
    template: str
    described_template: str  # the template for a style that is described, not named
    aliases: dict[str, Aliases]  # label of either axis -> aliases
    perturbations: tuple[str, ...]  # names in eval.suites.perturbations, applied to every prompt for the target
    steps: int  # of the sampler
    guidance: float  # classifier-free guidance scale
    tiers: dict[str, tuple[int, int]]  # tier -> images per target cell, images per other cell
    excluded: tuple[str, ...]  # styles that are excluded from the rates of retained styles
    judges: dict[str, dict[str, Any]]  # axis, or "clip" for alignment -> fields of a judge; `judge` names its module
    styles: dict[str, str]  # label -> phrase in a prompt
    objects: dict[str, str]
    gates: tuple[Gate, ...] = ()
    neighbors: dict[str, tuple[str, ...]] = field(default_factory=dict)  # label -> phrases of related concepts that should be retained
    benign: tuple[str, ...] = ()  # captions unrelated to every concept
    attacks: SuiteAttacks = SuiteAttacks()
    features: dict[str, Any] = field(default_factory=lambda: {"extractor": "judge"})  # extractor of image-set distances; empty: none
    seeds: tuple[int, ...] = ()  # of the images of every cell; empty: each image has its own
    prompt_list: PromptListSpec | None = None  # of format prompt_list: a list in place of the grid
    published: str = ""  # one of PUBLISHED_PROTOCOLS, or empty
    file: str = ""  # name of the user's suite file; empty for a shipped suite

    def phrases(self, axis: Axis) -> dict[str, str]:
        """Return the labels of an axis with their phrases in prompts."""
        return self.styles if axis == "style" else self.objects

    def find_concept(self, concept: str) -> tuple[Axis, str]:
        """Return the axis and label that a concept name means: a label, its phrase, or a name of the prompt list's concept.

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
    """Return the names of the shipped suites; with `complete`, only of those that ship their prompts."""
    suites = sorted(path.stem for path in SUITES_FOLDER.glob("*.yaml"))
    return [name for name in suites if not complete or (spec := load_suite(name).prompt_list) is None or spec.prompts]


def load_suite(name: str, prompts: str = "") -> Suite:
    """Load a suite by name or by the path of a YAML file.

    Args:
        prompts: the user's copy of a list, for a prompt-list suite that names none: a path, or hub:ORG/NAME/FILE.

    Raises:
        UserError: there is no such suite; its file has faults (all are listed); a tier asks for too many images; or a list is given for a
            suite that has its own prompts.
    """
    suite = _load_suite_file(name)
    if not prompts:
        return _check_image_count(suite)
    if suite.prompt_list is None or suite.prompt_list.prompts:
        raise UserError(f"suite {suite.name} has prompts of its own; leave --prompt-list out, or add the list with --replay.")
    own_list = prompt_list_suite.load_prompt_list(prompts)
    return _check_image_count(replace(suite, prompt_list=replace(suite.prompt_list, prompts=own_list.prompts, origin=own_list.origin)))


def _load_suite_file(name: str) -> Suite:
    path = Path(name) if name.endswith((".yaml", ".yml")) else SUITES_FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise unknown_value_error("suite", name, suite_names())
    return _parse_suite(read_strict_yaml(path), path)


def _parse_suite(record: Any, path: Path) -> Suite:
    if not isinstance(record, dict):
        raise UserError(f"{path} must hold a mapping, got {type(record).__name__}.")
    suite_format = str(record.get("format", "grid"))
    if suite_format not in SUITE_FORMATS:
        raise unknown_value_error(f"format in {path}", suite_format, SUITE_FORMATS)
    if problems := [
        *list_errors(record, SUITE_FORMATS[suite_format], str(path)),
        *gate_faults(record.get("gates"), str(path)),
        *_name_faults(record, path),
    ]:
        raise combine_errors(problems, str(path))
    if suite_format == "prompt_list":
        record = prompt_list_suite.as_grid_record(record, path)
    else:
        record = {key: value for key, value in record.items() if key != "format"}
    return Suite(
        **{
            **record,
            "gates": parse_gates(record["gates"], str(path)),
            "perturbations": tuple(record["perturbations"]),
            "aliases": {label: _parse_aliases(aliases) for label, aliases in record["aliases"].items()},
            "judges": {
                judge_part: {"judge": judge_spec} if isinstance(judge_spec, str) else dict(judge_spec)
                for judge_part, judge_spec in record["judges"].items()
            },
            "neighbors": {label: tuple(neighbors) for label, neighbors in record.get("neighbors", {}).items()},
            "benign": _read_captions(path.parent / record["benign"]) if "benign" in record else (),
            "attacks": _parse_attacks(record["attacks"]) if "attacks" in record else SuiteAttacks(),
            "seeds": tuple(record.get("seeds", ())),
            "tiers": {tier: tuple(counts) for tier, counts in record["tiers"].items()},
            "excluded": tuple(record["excluded"]),
            "file": "" if path.resolve().parent == SUITES_FOLDER.resolve() else path.name,
        }
    )


def _name_faults(record: dict[str, Any], path: Path) -> list[str]:
    """List names in a suite that do not exist; values of the wrong type are left to the schema."""
    styles, attacks = _names_in(record.get("styles")), _mapping_or_empty(_mapping_or_empty(record.get("attacks")).get("use"))
    labels, is_grid = [*styles, *_names_in(record.get("objects"))], record.get("format") != "prompt_list"
    judges = _mapping_or_empty(record.get("judges")) if is_grid else {"concept": record.get("judge")}
    judge_names = [judge_spec.get("judge") if isinstance(judge_spec, dict) else judge_spec for judge_spec in judges.values()]
    problems = [*_label_faults(record, labels, path)]
    for noun, mentioned, allowed in (
        ("label under aliases", _names_in(record.get("aliases")), labels),
        ("label under neighbors", _names_in(record.get("neighbors")), labels),
        ("label under excluded", _names_in(record.get("excluded")), styles),
        ("perturbation", _names_in(record.get("perturbations")), list(PERTURBATIONS)),
        ("judge", [name for name in judge_names if isinstance(name, str)], list_modules("eval.judges")),
        ("attack", [str(_mapping_or_empty(fields).get("attack", name)) for name, fields in attacks.items()], list_modules("eval.attacks")),
        ("protocol under published", [record["published"]] if record.get("published") else [], list(PUBLISHED_PROTOCOLS)),
    ):
        problems += [str(unknown_value_error(f"{noun} in {path}", name, allowed)) for name in mentioned if name not in allowed]
    if is_grid and judges.keys() < {"style", "object", "clip"} and not judges.keys() >= {"style", "object"}:
        problems.append(f"{path}: judges must name one for style and one for object, and may name one for clip; got {', '.join(judges)}.")
    return [*problems, *_protocol_faults(record, is_grid, bool(attacks), path), *_seed_faults(record, path)]


def _label_faults(record: dict[str, Any], labels: list[str], path: Path) -> list[str]:
    """List labels and neighbors that cannot name files or are reserved."""
    neighbors = [text for phrases in _mapping_or_empty(record.get("neighbors")).values() for text in _names_in(phrases)]
    list_labels = _names_in([record.get("label", record.get("concept"))])  # of format prompt_list
    problems = []
    for text in (*labels, *neighbors, *list_labels):
        if not LABEL_PATTERN.fullmatch(text):  # they name files
            problems.append(f"{path}: {text!r} cannot be a label: letters, digits, spaces and . ' & - are allowed, at most 80.")
        elif text in RESERVED_LABELS:
            problems.append(f"{path}: {text!r} cannot be a label: it stands for what a judge reads beside the suite's labels.")
    return problems


def _mapping_or_empty(value: Any) -> dict[str, Any]:
    """Return the value if it is a mapping, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def _names_in(value: Any) -> list[str]:
    """Return the texts in a list or the keys of a mapping; none for a value of another type."""
    return [name for name in value if isinstance(name, str)] if isinstance(value, list | dict) else []


def _protocol_faults(record: dict[str, Any], is_grid: bool, has_attacks: bool, path: Path) -> list[str]:
    published = record.get("published")
    if (published == "unlearncanvas" and not is_grid) or (published == "unlearndiffatk" and not has_attacks):
        return [f"{path}: published {published} needs {'a grid' if published == 'unlearncanvas' else 'attacks'}."]
    return []


def _seed_faults(record: dict[str, Any], path: Path) -> list[str]:
    seeds, tiers = record.get("seeds"), record.get("tiers")
    if not isinstance(seeds, list) or not all(isinstance(seed, int) for seed in seeds) or not isinstance(tiers, dict):
        return []
    counts = [n for tier_counts in tiers.values() if isinstance(tier_counts, list) for n in tier_counts if isinstance(n, int)]
    if not seeds or (len(set(seeds)) >= max(counts, default=0) and all(0 <= seed < 2**63 for seed in seeds)):
        return []
    return [f"{path}: seeds must be different whole numbers below 2^63, at least as many as a tier has images per cell; got {seeds[:10]}."]


def _check_image_count(suite: Suite) -> Suite:
    """Return the suite if no tier asks for more than MAX_IMAGES images of a model.

    Raises:
        UserError: a tier does; the message names it and the number.
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
                f"suite {suite.name}: tier {tier} asks for {image_count:,} images of a model; at most {MAX_IMAGES:,} are allowed."
            )
    return suite


def _parse_aliases(phrases_by_role: dict[str, list[str]]) -> Aliases:
    return Aliases(**{role: tuple(phrases) for role, phrases in phrases_by_role.items()})


def _read_captions(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise UserError(f"no captions at {path}; `benign` names a text file beside the suite, one caption per line.")
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file of captions in UTF-8, one per line: {error}.") from error


def _parse_attacks(record: dict[str, Any]) -> SuiteAttacks:
    use = {name: dict(fields or {}) for name, fields in record["use"].items()}
    return SuiteAttacks(**{**record, "tiers": tuple(record["tiers"]), "use": use})
