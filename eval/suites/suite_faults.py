"""Faults of a suite file beyond types and ranges: names that do not exist, labels that cannot be used. Imports no torch."""

import re
from pathlib import Path
from typing import Any, get_args

from erasure.config.registry import list_modules
from erasure.errors import unknown_value_error
from eval.suites.formats import RESERVED_LABELS, Protocol
from eval.suites.perturbations import PERTURBATIONS

LABEL_PATTERN = re.compile(r"\w[\w .'&-]{0,79}")
PUBLISHED_PROTOCOLS = tuple(protocol for protocol in get_args(Protocol) if protocol)


def name_faults(record: dict[str, Any], path: Path) -> list[str]:
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
