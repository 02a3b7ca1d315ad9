"""What a request for an audit names, resolved: suites, edits, erasures made elsewhere, and the audit's folder.

Torch is imported when an edit is read, and not before.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from erasure.concept import ConceptKind, parse_concepts
from erasure.errors import UserError
from erasure.storage.edit_folders import is_edit_path
from eval.suites.formats import PromptListSuite, Suite
from eval.suites.list_reader import PromptList, load_prompt_list, split_column
from eval.suites.suite import add_prompt_list, load_suite

if TYPE_CHECKING:
    from erasure.edits import Edit, EditSource
    from erasure.families.base import DiffusionModel
    from eval.auditing.plan import AuditPlan


def split_suite_name(suite: str) -> tuple[str, str]:
    """Split "pocket/neon" into suite and concept. The concept is empty where none is named, and for a YAML file."""
    name, _, concept = suite.partition("/") if not suite.endswith((".yaml", ".yml")) else (suite, "", "")
    return name, concept


def resolve_suite(suite: str | Path | Suite, prompt_list: str = "") -> tuple[Suite, str]:
    """Return a suite, and the concept of SUITE/CONCEPT or an empty text.

    Args:
        suite: the name of a shipped suite, SUITE/CONCEPT, the path of a YAML file, or a suite.
        prompt_list: the user's copy of the list of a suite that ships none.

    Raises:
        UserError: as `load_suite`.
    """
    if isinstance(suite, str | Path):
        name, concept = split_suite_name(str(suite))
        return load_suite(name, prompt_list), concept
    return add_prompt_list(suite, prompt_list) if prompt_list else suite, ""


def resolve_replay(replay: str | PromptList) -> PromptList | None:
    """Return a prompt list to replay, loaded where an address is given; None for an empty text.

    Raises:
        UserError: as `load_prompt_list`.
    """
    if isinstance(replay, str):
        return load_prompt_list(replay) if replay else None
    return replay


def external_target_of(suite: Suite, concept: str) -> tuple[ConceptKind, str]:
    """Return kind and name of what an external erasure claims to erase, from SUITE/CONCEPT.

    Raises:
        UserError: the suite does not have the concept.
    """
    axis, label = suite.find_concept(concept)
    return (suite.kind, concept) if isinstance(suite, PromptListSuite) else (axis, label)


def resolve_edits(
    model: "DiffusionModel", edits: Sequence["EditSource"], claim: tuple[ConceptKind, str] | None, *, may_be_remote: bool
) -> tuple["Edit", ...]:
    """Return edits, loaded where a path is given; what is not an edit of this project is compared with `model`, its base.

    Args:
        claim: kind and name of what external erasures claim to erase; "a; b" are two concepts.
        may_be_remote: whether a path that does not exist may be a hub id; otherwise it is a mistyped edit.

    Raises:
        UserError: there is no edit; one cannot be read or is duplicated; or an external erasure comes without a claim.
    """
    from erasure.edits import Edit, check_distinct

    if not edits:
        raise UserError("audit needs the folder of an edit: erasure audit runs/NAME.")
    resolved = []
    for source in edits:
        if isinstance(source, Edit):
            resolved.append(source)
        elif is_edit_path(str(source)) or not (may_be_remote or Path(source).exists()):
            resolved.append(Edit.load(source))
        elif claim:
            from erasure.edits.external.external_edit import load_external

            resolved.append(load_external(model, str(source), parse_concepts(claim[1], kind=claim[0])))
        else:
            raise UserError(f"{source} was not made by `erasure erase`; to audit it give --concept as well.")
    return tuple(check_distinct(resolved))


def load_model_and_edits(
    paths: Sequence[Path],
    load_base: Callable[[str], "DiffusionModel"],
    *,
    model: str = "",
    concept: str = "",
    kind: ConceptKind = "style",
    suite_target: tuple[ConceptKind, str] | None = None,
    out: Path | None = None,
) -> tuple["DiffusionModel", tuple["Edit", ...]]:
    """Load the base model and the edits on it.

    Args:
        load_base: loads a model by its name, on the device and in the precision of the audit.
        model: the base; empty for the one that the first edit was made on, which an external erasure does not record.
        concept, kind: what external erasures claim to erase; "a; b" are two concepts.
        suite_target: kind and name of what they claim to erase if `concept` is empty (`external_target_of`).
        out: the audit's folder; None for one below the edit.

    Raises:
        UserError: as `resolve_edits`; an external erasure lacks the flags to audit it; or a concept is given for edits that record theirs.
    """
    from erasure.edits import load_edits

    claim = (kind, concept) if concept else suite_target
    external_paths = [path for path in paths if not is_edit_path(str(path))]
    may_be_remote = concept or (suite_target and model and out)  # otherwise a missing path is a mistyped edit
    if not external_paths or not (may_be_remote or any(path.exists() for path in external_paths)):
        edits = load_edits(paths)
        if concept:
            raise UserError("--concept is for erasures made elsewhere; this edit records what it erases. Leave it out.")
        return load_base(model or edits[0].info.base["source"]), edits
    needed = {"concept": claim and claim[1], "model": model, "out": out}
    if missing := [f"--{name}" for name, value in needed.items() if not value]:
        raise UserError(f"{external_paths[0]} was not made by `erasure erase`; to audit it give {', '.join(missing)} as well.")
    base = load_base(model)
    return base, resolve_edits(base, paths, claim, may_be_remote=bool(may_be_remote))


def select_plans(concept: str, plans: Sequence["AuditPlan"]) -> list["AuditPlan"]:
    """Return the plan for one concept among the plans for what the edits erase.

    Raises:
        UserError: the edits do not erase the concept, or not alone: all styles, or all objects, of the edits are counted together.
    """
    suite = plans[0].suite
    axis, label = suite.find_concept(concept)
    matching = [plan for plan in plans if (plan.axis, plan.targets) == (axis, (label,))]
    if not matching:
        erased = ", ".join(target for plan in plans for target in plan.targets)
        raise UserError(f"--suite {suite.name}/{concept} selects {concept} alone, but the edits erase {erased}; give --suite {suite.name}.")
    return matching


def default_audit_folder(
    edit_paths: Sequence[Path],
    suite: str,
    tier: str,
    *,
    prompt_list: str = "",
    replay: str = "",
    strength: float = 1.0,
    only: str = "",
    axis: str = "",
) -> Path:
    """Return the folder of an audit below its edit; a stack of edits has a folder of its own, beside the first edit.

    Args:
        prompt_list, replay: addresses of lists; their names become part of the folder's.
        only: label of a fine-grained audit.
        axis: if the edits erase styles and objects, the one that is audited.
    """
    parts = (
        *("audit", suite, tier),
        f"of-{slug_of_list(prompt_list)}" if prompt_list else "",
        f"strength-{strength:g}" if strength != 1 else "",
        f"only-{only}" if only else "",
        f"replay-{slug_of_list(replay)}" if replay else "",
        axis,
    )
    name = "-".join(part for part in parts if part)
    first, *others = edit_paths
    return (first.parent / "+".join(path.name for path in edit_paths) if others else first) / name


def slug_of_list(address: str) -> str:
    """Return the name of a prompt list for use in a folder name."""
    file, column = split_column(address)
    return "-".join(part for part in (Path(file).stem, re.sub(r"[^\w.-]+", "-", column)) if part)
