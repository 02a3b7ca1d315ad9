"""The options of a method as a form: every field with words instead of symbols, the usual ones first."""

import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import gradio as gr

from app.web.comparison import MAX_PROMPT_LENGTH
from erasure.concept import Concept, ConceptKind
from erasure.config.registry import field_help_of, list_modules, load_class
from erasure.errors import UserError, unknown_value_error
from erasure.families.base import DiffusionModel
from erasure.methods.base import Method
from erasure.recipes import configure_method

PATH_FIELDS = ("images", "retain_images", "generator")  # fields that are paths of this machine
USUAL_FIELDS = (
    "steps",
    "negative_guidance",
    "erase_weight",
    "retain_weight",
    "candidate_fraction",
    "mask_fraction",
    "scale",
    "region",
    "lr",
)
LABELS = {"lr": "Learning rate", "region": "Weights to change"}
REGION_WORDS = {
    "xattn": "where text enters (cross-attention)",
    "xattn-kv": "keys and values of cross-attention",
    "text-proj": "projections of the text",
    "noxattn": "everything but cross-attention",
    "selfattn": "self-attention",
    "ff-out": "outputs of the feed-forward layers",
    "full": "everything in the image network",
    "text-encoder": "the text encoder",
}
SYMBOLS = re.compile(r",? (?:\w+ in the equation|the paper's \w+)( \([^)]*\))?| \(the authors' \w+\)")


@dataclass(frozen=True)
class MethodForm:
    """The options of one method: a group that is shown for this method only, and a widget for every field."""

    cls: type[Method]
    group: Any
    widgets: dict[str, Any]

    def defaults(self, model: DiffusionModel, kind: ConceptKind) -> Method:
        """Return the method with its recipe for a kind of concept.

        Raises:
            UserError: The method does not serve the model.
        """
        method: Method = configure_method(self.cls, [Concept(name="concept", kind=kind)], model.family, {})[0]
        method.check_model(model)
        return method

    def fill(self, model: DiffusionModel, kind: ConceptKind) -> list[Any]:
        """Return what the widgets show for a kind of concept."""
        method = self.defaults(model, kind)
        values = [getattr(method, name) for name in self.widgets]
        return ["\n".join(value) if isinstance(value, tuple) else value for value in values]

    def read(self, model: DiffusionModel, kind: ConceptKind, values: Sequence[Any]) -> dict[str, Any]:
        """Return the fields that differ from the recipe.

        Raises:
            UserError: A number is missing, or the method does not serve the model.
        """
        method, types = self.defaults(model, kind), typing.get_type_hints(self.cls)
        given = {name: read_value(name, types[name], value) for name, value in zip(self.widgets, values, strict=True)}
        return {name: value for name, value in given.items() if value != getattr(method, name)}


@dataclass(frozen=True)
class MethodForms:
    """The forms of all methods, by name."""

    forms: dict[str, MethodForm]

    @property
    def widgets(self) -> list[Any]:
        return [widget for form in self.forms.values() for widget in form.widgets.values()]

    @property
    def groups(self) -> list[Any]:
        return [form.group for form in self.forms.values()]

    def fill(self, name: str, model: DiffusionModel, kind: ConceptKind) -> list[Any]:
        """Return what to show once a method is chosen: its group alone, and its recipe in its widgets."""
        groups = [gr.Column(visible=other == name) for other in self.forms]
        values: list[Any] = []
        for other, form in self.forms.items():
            values += form.fill(model, kind) if other == name else [gr.skip() for _ in form.widgets]
        return [*groups, *values]

    def values_of(self, name: str, values: Sequence[Any]) -> Sequence[Any]:
        """Return the values of one method's widgets among those of all."""
        start = 0
        for other, form in self.forms.items():
            if other == name:
                return values[start : start + len(form.widgets)]
            start += len(form.widgets)
        raise unknown_value_error("method", name, self.forms)


def build_forms(is_local: bool, chosen: str) -> MethodForms:
    """Build the options of all methods; `chosen` is shown."""
    return MethodForms({name: build_form(name, is_local, name == chosen) for name in list_modules("erasure.methods")})


def build_form(name: str, is_local: bool, visible: bool) -> MethodForm:
    """Build the options of a method, the usual ones first."""
    cls = load_class("erasure.methods", name, Method)
    types, help_ = typing.get_type_hints(cls), field_help_of(cls)
    method, names = cls(), [f.name for f in fields(cls) if is_local or f.name not in PATH_FIELDS]
    usual = [field for field in USUAL_FIELDS if field in names]
    widgets: dict[str, Any] = {}
    with gr.Column(visible=visible) as group:
        for field in usual:
            widgets[field] = make_widget(f"{name}-{field}", field, types[field], getattr(method, field), help_.get(field, ""))
        with gr.Accordion("Advanced options", open=False):
            for field in (other for other in names if other not in usual):
                widgets[field] = make_widget(f"{name}-{field}", field, types[field], getattr(method, field), help_.get(field, ""))
    return MethodForm(cls, group, widgets)


def read_value(name: str, hint: Any, value: Any) -> Any:
    """Return the value of a field from that of its widget.

    Raises:
        UserError: A number is missing.
    """
    kind = value_type(hint)
    if kind in (int, float) and value is None:
        raise UserError(f"{label_of(name)} needs a number.")
    if typing.get_origin(kind) is tuple:
        return tuple(line.strip() for line in value.splitlines() if line.strip())
    return kind(value) if kind in (int, float, bool, str) else value


def label_of(name: str) -> str:
    return LABELS.get(name, name.replace("_", " ").capitalize())


def explain(help_: str) -> str | None:
    """Return the help of a field without the symbols of papers."""
    text = SYMBOLS.sub("", help_).strip()
    return text[:1].upper() + text[1:] + "." if text else None


def value_type(hint: Any) -> Any:
    """Return the plain type of a field; Annotated ranges are checked later."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def make_widget(elem_id: str, name: str, hint: Any, value: Any, help_: str) -> Any:
    """Return the input for one field of a method."""
    shared: dict[str, Any] = {"label": label_of(name), "info": explain(help_), "interactive": True, "elem_id": elem_id}
    kind = value_type(hint)
    if typing.get_origin(kind) is Literal:
        return gr.Dropdown([(REGION_WORDS.get(choice, str(choice)), choice) for choice in get_args(kind)], value=value, **shared)
    if kind is bool:
        return gr.Checkbox(value, **shared)
    if kind in (int, float):
        return gr.Number(value, precision=0 if kind is int else None, **shared)
    if isinstance(value, tuple):
        return gr.Textbox("\n".join(value), lines=3, max_lines=8, max_length=20_000, **shared)
    return gr.Textbox(str(value), max_length=MAX_PROMPT_LENGTH, **shared)
