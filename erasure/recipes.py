"""The fields of a method for a concept's kind and a model family: recommended values, and those that the user gives."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from erasure.concept import Concept
from erasure.config.registry import load_class
from erasure.config.validation import build_dataclass
from erasure.errors import UnfitMethodWarning, UserError, unknown_value_error
from erasure.families.pipelines import RELEASED_FAMILIES
from erasure.methods.base import Method, Trained


def find_recipe(cls: type[Method], concepts: Sequence[Concept], family: str) -> dict[str, Any]:
    """Return the recommended field values for the first concept's kind on this model family; empty if the defaults apply."""
    return dict(cls.recipes.get((concepts[0].kind, family), {}))


def configure_method(
    cls: type[Method], concepts: Sequence[Concept], family: str, overrides: Mapping[str, Any]
) -> tuple[Method, list[Concept], dict[str, Any]]:
    """Return the method, the concepts, and the fields that differ from the paper's defaults; the recipe fills in what is not given.

    Args:
        overrides: field values that take precedence over the recipe.

    Raises:
        UserError: The method has no such field, or a value has the wrong type.
    """
    values = find_recipe(cls, concepts, family)
    prompts, anchor = values.pop("prompts", ()), values.pop("anchor", "")
    concepts = [
        Concept(**{**asdict(c), "prompts": c.prompts or prompts, "anchor": c.anchor or (anchor if anchor != c.name else "")})
        for c in concepts
    ]
    allowed = [f.name for f in fields(cls)]
    for name in overrides:
        if name not in allowed:
            raise unknown_value_error("field", name, allowed)
    # JSON and YAML have only lists
    values.update({name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()})
    method = build_dataclass(cls, values, f"method {cls.__module__.rsplit('.', 1)[-1]}")
    return method, concepts, find_changed_fields(method)


def choose_method(
    method: str | Method, concepts: Sequence[Concept], family: str, overrides: Mapping[str, Any]
) -> tuple[Method, list[Concept], dict[str, Any]]:
    """Return what `configure_method` does, for a method given by its name, or as it is: then it has no recipe and no overrides.

    Raises:
        UserError: No such method, overrides of a method that is given as it is, or as `configure_method`.
    """
    if not isinstance(method, Method):
        return configure_method(load_class("erasure.methods", method, Method), concepts, family, overrides)
    if overrides:
        raise UserError(
            f"{', '.join(overrides)}: fields are for a method given by its name; set them on the {type(method).__name__} instead."
        )
    return method, list(concepts), find_changed_fields(method)


def check_request(method: str, concepts: Sequence[Concept], family: str, fields: Mapping[str, Any], seed: int) -> None:
    """Check what needs no model: the method's fields, and that there are trajectories for all prompts.

    Args:
        family: of the model; empty where it is not known before the model is loaded: then only what no family allows is refused.
        fields: options of the method by name; None means the recipe's value.

    Raises:
        UserError: as `configure_method`, or as TeacherQuery.
    """
    overrides = {name: value for name, value in fields.items() if value is not None}
    errors = []
    families = [family] if family else list(RELEASED_FAMILIES)
    for name in families:
        try:
            configured, chosen, _ = choose_method(method, concepts, name, overrides)
            if isinstance(configured, Trained):
                configured.query(chosen, seed)
                if pretraining := configured.pretraining():
                    pretraining.query([], 0)
        except UserError as error:
            errors.append(error)
    if len(errors) == len(families):
        raise errors[0]


def find_changed_fields(method: Method) -> dict[str, Any]:
    """Return the fields of a method that differ from the paper's defaults."""
    return {f.name: getattr(method, f.name) for f in fields(method) if getattr(method, f.name) != f.default}


def warn_unfit(method: Method, concepts: Sequence[Concept]) -> None:
    """Warn about kinds of concepts on which the method did badly where it was measured."""
    for kind in dict.fromkeys(concept.kind for concept in concepts):
        if reason := method.unfit.get(kind):
            message = f"{type(method).__name__} is a poor choice for a concept of kind {kind}: {reason}."
            warnings.warn(message, UnfitMethodWarning, stacklevel=2)
