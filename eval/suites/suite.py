"""Suites by name or file: strict YAML, all faults told at once, parsed into one of two formats. Imports no torch."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from erasure.config.arguments import check_arguments
from erasure.config.strict_yaml import read_strict_yaml
from erasure.config.validation import combine_errors, list_errors
from erasure.errors import UserError, unknown_value_error
from eval.records.gates import Tier, gate_faults, parse_gates
from eval.suites.formats import GridSuite, PromptListSuite, Suite, has_prompts, parse_attacks, parse_extractor, parse_judge
from eval.suites.list_reader import load_prompt_list
from eval.suites.suite_faults import name_faults
from eval.suites.suite_schema import SUITE_SCHEMAS

SUITES_FOLDER = Path(__file__).parent.parent.parent / "prompts"
MAX_IMAGES = 1_000_000  # of one model in one audit
_SUITE_PARSER: TypeAdapter[Suite] = TypeAdapter(Annotated[GridSuite | PromptListSuite, Field(discriminator="format")])


def suite_names(complete: bool = False) -> list[str]:
    """Return the names of the shipped suites; with `complete`, only of those that ship their prompts."""
    names = sorted(path.stem for path in SUITES_FOLDER.glob("*.yaml"))
    return [name for name in names if not complete or has_prompts(load_suite(name))]


@check_arguments
def load_suite(name: str | Path, prompts: str = "") -> Suite:
    """Load a suite by name or by the path of a YAML file.

    Args:
        prompts: the user's copy of a list, for a prompt-list suite that names none: a path, or hub:ORG/NAME/FILE.

    Raises:
        UserError: there is no such suite; its file has faults (all are listed); a tier asks for too many images; or a list is given for a
            suite that has its own prompts.
    """
    suite = _load_suite_file(str(name))
    if prompts:
        return add_prompt_list(suite, prompts)
    _check_image_count(suite)
    return suite


def add_prompt_list(suite: Suite, source: str) -> Suite:
    """Return a prompt-list suite that ships no prompts with the user's copy of its list.

    Args:
        source: a path, or hub:ORG/NAME/FILE.

    Raises:
        UserError: the suite has prompts of its own; the list cannot be read; or a tier now asks for too many images.
    """
    if isinstance(suite, GridSuite) or suite.prompts:
        raise UserError(f"suite {suite.name} has prompts of its own; leave --prompt-list out, or add the list with --replay.")
    own_list = load_prompt_list(source)
    completed = replace(suite, prompts=own_list.prompts, origin=own_list.origin)
    _check_image_count(completed)
    return completed


def _load_suite_file(name: str) -> Suite:
    path = Path(name) if name.endswith((".yaml", ".yml")) else SUITES_FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise unknown_value_error("suite", name, suite_names())
    return _parse_suite(read_strict_yaml(path), path)


def _parse_suite(record: Any, path: Path) -> Suite:
    if not isinstance(record, dict):
        raise UserError(f"{path} must hold a mapping, got {type(record).__name__}.")
    suite_format = str(record.get("format", "grid"))
    if suite_format not in SUITE_SCHEMAS:
        raise unknown_value_error(f"format in {path}", suite_format, SUITE_SCHEMAS)
    if faults := [
        *list_errors(record, SUITE_SCHEMAS[suite_format], str(path)),
        *gate_faults(record.get("gates"), str(path)),
        *name_faults(record, path),
    ]:
        raise combine_errors(faults, str(path))
    parsed = _parse_grid_keys(record) if suite_format == "grid" else _parse_list_keys(record, path)
    parsed["gates"] = parse_gates(record["gates"], str(path))
    parsed["benign"] = _read_captions(path.parent / record["benign"]) if "benign" in record else ()
    if "attacks" in record:
        parsed["attacks"] = {**record["attacks"], "use": parse_attacks(record["attacks"]["use"])}
    parsed["file"] = "" if path.resolve().parent == SUITES_FOLDER.resolve() else path.name
    return _SUITE_PARSER.validate_python(parsed)


def _parse_grid_keys(record: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a grid's record with the judges and the extractor parsed."""
    return {
        **record,
        "judges": {part: parse_judge(spec) for part, spec in record["judges"].items()},
        "features": parse_extractor(record.get("features", {"extractor": "judge"})),
    }


def _parse_list_keys(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a copy of the record of a prompt-list suite with its judges, extractor, names and prompts parsed.

    Args:
        path: the suite file; paths in it are relative to its folder.

    Raises:
        UserError: the list cannot be read.
    """
    concept = record["concept"]
    label = record.get("label", concept)
    prompts, origin = load_prompt_list(record["list"], path.parent) if "list" in record else ((), None)
    return {
        **{key: value for key, value in record.items() if key not in ("judge", "clip", "list")},
        "judges": {
            "style" if record["kind"] == "style" else "object": parse_judge(record["judge"]),
            **({"clip": parse_judge(record["clip"])} if "clip" in record else {}),
        },
        "features": parse_extractor(record.get("features", {})),
        "label": label,
        "names": tuple(dict.fromkeys([concept, label, *record.get("names", [])])),
        "prompts": prompts,
        "origin": origin,
    }


def _read_captions(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise UserError(f"no captions at {path}; `benign` names a text file beside the suite, one caption per line.")
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file of captions in UTF-8, one per line: {error}.") from error


def _check_image_count(suite: Suite) -> None:
    """Check that no tier asks for more than MAX_IMAGES images of a model.

    Raises:
        UserError: a tier does; the message names it and the number.
    """
    attacks = suite.attacks
    for tier, image_count in _images_by_tier(suite).items():
        if tier in attacks.tiers:
            image_count += attacks.prompts * (attacks.images + attacks.fresh_images) * len(attacks.use)
        if image_count > MAX_IMAGES:
            raise UserError(
                f"suite {suite.name}: tier {tier} asks for {image_count:,} images of a model; at most {MAX_IMAGES:,} are allowed."
            )


def _images_by_tier(suite: Suite) -> dict[Tier, int]:
    """Return at least as many images as an audit of one concept generates of a model without attacks, by tier."""
    if isinstance(suite, PromptListSuite):
        return {tier: min(len(suite.prompts), spec.prompts or len(suite.prompts)) * spec.images for tier, spec in suite.tiers.items()}
    cell_count, longest_axis = len(suite.styles) * len(suite.objects), max(len(suite.styles), len(suite.objects))
    alias_count = max((len(a.named) + len(a.described) for a in suite.aliases.values()), default=0)
    return {tier: cell_count * max(count) + alias_count * longest_axis * count.other for tier, count in suite.tiers.items()}
