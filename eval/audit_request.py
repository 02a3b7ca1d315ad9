"""What the user asks to be audited, by names and paths, and what it means: the suite, the base and its edits, the plans, the folders.

Torch is imported when something is loaded, and not before.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from erasure.concept import ConceptKind, parse_concepts
from erasure.errors import UserError
from eval.scoring.gates import Tier
from eval.suites.formats import Suite
from eval.suites.list_reader import ListedPrompt, PromptListOrigin, load_prompt_list, split_column
from eval.suites.suite import load_suite

if TYPE_CHECKING:
    from erasure.edits import Edit
    from erasure.families.base import DiffusionModel
    from eval.auditing.plan import AuditPlan


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """An audit as it is asked for. Nothing is loaded or checked.

    Attributes:
        edits: folders of edits, which are applied together in this order, or erasures made elsewhere.
        suite: name of a suite, SUITE/CONCEPT for one concept of it, or a YAML file.
        concept, kind: what an erasure made elsewhere claims to erase; "a; b" are two concepts.
        model: the base; empty means the one that the first edit was made on.
        out: the audit folder; None means one below the edit.
        prompt_list, replay: addresses of prompt lists (eval.suites.list_reader.load_prompt_list).
        only: the label of the other axis that a fine-grained erasure is meant for.
    """

    edits: tuple[Path, ...]
    suite: str = "pocket"
    tier: Tier = "standard"
    concept: str = ""
    kind: ConceptKind = "style"
    model: str = ""
    out: Path | None = None
    prompt_list: str = ""
    replay: str = ""
    only: str = ""
    strength: float = 1.0

    @property
    def suite_name(self) -> str:
        """The name or file of the suite, without a concept."""
        return split_suite_name(self.suite)[0]

    @property
    def suite_concept(self) -> str:
        """The concept of SUITE/CONCEPT; empty where none is named."""
        return split_suite_name(self.suite)[1]

    def may_be_external(self) -> bool:
        """Return whether the edits may be erasures made elsewhere, so that a path that does not exist may be a hub id."""
        return bool(self.concept or self.suite_concept)


@dataclass(frozen=True)
class RequestedSuite:
    """The suite of a request, and the prompts to replay with the record of their list."""

    suite: Suite
    replay_prompts: tuple[ListedPrompt, ...] = ()
    replay_list: PromptListOrigin | None = None


def split_suite_name(suite: str) -> tuple[str, str]:
    """Split "pocket/neon" into suite and concept. The concept is empty where none is named, and for a YAML file."""
    name, _, concept = suite.partition("/") if not suite.endswith((".yaml", ".yml")) else (suite, "", "")
    return name, concept


def load_requested_suite(request: AuditRequest) -> RequestedSuite:
    """Load the suite and the list to replay.

    Raises:
        UserError: The suite or a list does not exist or cannot be used.
    """
    suite = load_suite(request.suite_name, request.prompt_list)
    return RequestedSuite(suite, *(load_prompt_list(request.replay) if request.replay else ()))


def external_target_of(suite: Suite, concept: str) -> tuple[ConceptKind, str]:
    """Return kind and name of what an external erasure claims to erase, from SUITE/CONCEPT.

    Raises:
        UserError: The suite does not have the concept.
    """
    axis, label = suite.find_concept(concept)
    return (suite.kind, concept) if suite.format == "prompt_list" else (axis, label)


def load_model_and_edits(
    request: AuditRequest, suite: Suite, load_base: Callable[[str], "DiffusionModel"]
) -> tuple["DiffusionModel", list["Edit"]]:
    """Load the base model and the edits on it. Without `concept`, an erasure made elsewhere claims to erase the concept of SUITE/CONCEPT.

    Args:
        load_base: loads a model by its name, on the device and in the precision of the audit.

    Raises:
        UserError: An edit cannot be read or is named twice, an external erasure lacks what is needed to audit it, or `concept` is given
            for edits that record their concepts.
    """
    from erasure.edits import Edit, check_distinct
    from erasure.edits.external.external_edit import is_edit_path, load_external

    target = external_target_of(suite, request.suite_concept) if request.suite_concept else None
    kind, concept = (request.kind, request.concept) if request.concept or target is None else target
    external_paths = [path for path in request.edits if not is_edit_path(str(path))]
    is_external = request.concept or (target and request.model and request.out)  # otherwise a missing path is a mistyped edit
    if not external_paths or not (is_external or any(path.exists() for path in external_paths)):
        edits = list(check_distinct([Edit.load(path) for path in request.edits]))
        if request.concept:
            raise UserError("--concept is for erasures made elsewhere; this edit records what it erases. Leave it out.")
        return load_base(request.model or edits[0].info.base["source"]), edits
    needed = {"concept": concept, "model": request.model, "out": request.out}
    if missing := [f"--{name}" for name, value in needed.items() if not value]:
        raise UserError(f"{external_paths[0]} was not made by `erasure erase`; to audit it give {', '.join(missing)} as well.")
    model, concepts = load_base(request.model), parse_concepts(concept, kind=kind)
    edits = [Edit.load(path) if is_edit_path(str(path)) else load_external(model, str(path), concepts) for path in request.edits]
    return model, list(check_distinct(edits))


def plan_audits(request: AuditRequest, requested: RequestedSuite, edits: Sequence["Edit"]) -> list[tuple["AuditPlan", Path]]:
    """Return the plan of each audit and its folder: one, or one per axis where the edits erase styles and objects.

    Raises:
        UserError: The suite lacks a concept or its tier, or the edits do not erase the concept of SUITE/CONCEPT alone.
    """
    from eval.auditing.plan import AuditPlan

    suite = requested.suite
    plans = AuditPlan.for_edits(edits, suite, request.tier, requested.replay_prompts, request.only, requested.replay_list)
    has_both_axes = len(plans) > 1
    if request.suite_concept:
        plans = select_plans(request.suite_concept, plans)
    return [(plan, audit_folder_of(request, suite.name, plan.axis if has_both_axes else "", plan.only)) for plan in plans]


def select_plans(concept: str, plans: Sequence["AuditPlan"]) -> list["AuditPlan"]:
    """Return the plan for one concept among the plans for what the edits erase.

    Raises:
        UserError: The edits do not erase the concept, or not alone: all styles, or all objects, of the edits are counted together.
    """
    suite = plans[0].suite
    axis, label = suite.find_concept(concept)
    matching = [plan for plan in plans if (plan.axis, plan.targets) == (axis, (label,))]
    if not matching:
        erased = ", ".join(target for plan in plans for target in plan.targets)
        raise UserError(f"--suite {suite.name}/{concept} selects {concept} alone, but the edits erase {erased}; give --suite {suite.name}.")
    return matching


def audit_folder_of(request: AuditRequest, suite: str, axis: str, only: str = "") -> Path:
    """Return the audit folder: `out`, or below the edit. A stack of edits has its own folder, and so has each axis if both are erased."""
    prompts, replay = (
        f"{label}-{slug_of_list(source)}" if source else "" for label, source in (("of", request.prompt_list), ("replay", request.replay))
    )
    strength = f"strength-{request.strength:g}" if request.strength != 1 else ""
    name = "-".join(part for part in ("audit", suite, request.tier, prompts, strength, f"only-{only}" if only else "", replay) if part)
    first, *others = request.edits
    if request.out:
        return request.out / axis if axis else request.out
    parent = first if not others else first.parent / "+".join(path.name for path in request.edits)
    return parent / (f"{name}-{axis}" if axis else name)


def slug_of_list(address: str) -> str:
    """Return the name of a prompt list for use in a folder name."""
    file, column = split_column(address)
    return "-".join(part for part in (Path(file).stem, re.sub(r"[^\w.-]+", "-", column)) if part)
