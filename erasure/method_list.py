"""The erasure methods, described for people who choose one."""

from dataclasses import dataclass, field
from typing import Any

from erasure.concept import ConceptKind, parse_concepts
from erasure.config.arguments import check_arguments
from erasure.config.registry import list_modules, load_class, read_summary
from erasure.erasing import forecast_erasure
from erasure.families.cost import Cost
from erasure.loading.loader import ModelOrSource, resolve_model
from erasure.methods.base import Method, Product
from erasure.recipes import configure_method


@dataclass(frozen=True)
class MethodDescription:
    """One erasure method.

    Attributes:
        name: as `erase` takes it.
        summary: what it does, in one line with its source.
        paper: arXiv id, or where it is from.
        changes: what it changes, in a few words.
        when: when to choose it, and its main drawback.
        product: what its edits hold: weights, guidance or a one-step generator.
        method_class: the dataclass whose fields are the method's options.
    """

    name: str
    summary: str
    paper: str
    changes: str
    when: str
    product: Product
    method_class: type[Method] = field(repr=False)

    @check_arguments
    def forecast_cost(self, model: ModelOrSource, concepts: str = "concept", *, kind: ConceptKind = "style", **fields: Any) -> Cost:
        """Return the network passes per sample of an erasure with the recipe for this kind and model, concept check included.

        Args:
            model: as `erase` takes it.
            concepts: "a; b" counts as two.
            fields: options of the method that take precedence over the recipe.

        Raises:
            UserError: An empty name, an unknown option, a value that the option does not allow, or a model that the method does not serve.
        """
        requested, model = parse_concepts(concepts, kind=kind), resolve_model(model)
        method, chosen, _ = configure_method(self.method_class, requested, model.family, fields)
        return forecast_erasure(model, chosen, method)


def list_methods() -> tuple[MethodDescription, ...]:
    """Return every erasure method, by name."""
    return tuple(_describe(name, load_class("erasure.methods", name, Method)) for name in list_modules("erasure.methods"))


def _describe(name: str, cls: type[Method]) -> MethodDescription:
    summary = read_summary("erasure.methods", name).partition(": ")[2]
    return MethodDescription(name, summary, cls.paper, cls.changes, cls.when, cls.product, cls)
