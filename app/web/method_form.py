"""The options of a method as a form of plain HTML: every field with words instead of symbols, the usual ones first.

A page with a component for every field of every method would be slow to draw: there are some hundred of them, and one method is shown.
"""

import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from app.html_templates import render_html
from app.web.comparison import MAX_PROMPT_LENGTH
from erasure.concept import Concept, ConceptKind
from erasure.config.registry import field_help_of, load_class
from erasure.errors import UserError
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
SYMBOLS = re.compile(r",? (?:\w+ in the equation|the paper's \w+)( \([^)]*\))?| \(the authors' \w+\)| \(extra \w+\)")
FLAG = re.compile(r"--([a-z][a-z-]*)")
MAX_LINES_LENGTH = 20_000  # characters of an option with one value a line
InputKind = Literal["integer", "number", "checkbox", "choice", "lines", "text"]


@dataclass(frozen=True)
class Option:
    """One field of a method, as the form asks for it."""

    name: str
    label: str
    info: str
    kind: InputKind
    value: Any
    choices: tuple[tuple[str, str], ...] = ()  # words and value

    @property
    def usual(self) -> bool:
        return self.name in USUAL_FIELDS

    @property
    def shown(self) -> str:
        """The value as the text of an input."""
        return "\n".join(self.value) if self.kind == "lines" else str(self.value)

    @property
    def max_length(self) -> int:
        return MAX_LINES_LENGTH if self.kind == "lines" else MAX_PROMPT_LENGTH

    def parse(self, value: object) -> Any:
        """Return the value of the field from that of its input.

        Raises:
            UserError: A number is missing or none, or the text is too long or no choice.
        """
        text = str(value).strip()
        if len(text) > self.max_length:
            raise UserError(f"{self.label} has {len(text):,} characters. At most {self.max_length:,} are allowed.")
        match self.kind:
            case "checkbox":
                return value is True
            case "lines":
                return tuple(line.strip() for line in text.splitlines() if line.strip())
            case "choice" if text not in (choice for _, choice in self.choices):
                raise UserError(f"{self.label} has no choice {text!r}.")
            case "integer" | "number":
                return parse_number(self.label, text, whole=self.kind == "integer")
        return text


def parse_number(label: str, text: str, *, whole: bool) -> float:
    """Return a number that was typed.

    Raises:
        UserError: It is none, or not a whole one.
    """
    try:
        number = float(text)
        rounded = int(number) if whole else number
    except (ValueError, OverflowError):
        raise UserError(f"{label} needs a number{f', not {text!r}' if text else ''}.") from None
    if whole and rounded != number:
        raise UserError(f"{label} needs a whole number, not {text}.")
    return rounded


def options_of(name: str, model: DiffusionModel, kind: ConceptKind, is_local: bool) -> list[Option]:
    """Return the options of a method with the values of its recipe for a kind of concept, the usual ones first.

    Raises:
        UserError: The method does not serve the model.
    """
    cls = load_class("erasure.methods", name, Method)
    method = configure_method(cls, [Concept(name="concept", kind=kind)], model.family, {})[0]
    method.check_model(model)
    types, help_ = typing.get_type_hints(cls), field_help_of(cls)
    names = [f.name for f in fields(cls) if is_local or f.name not in PATH_FIELDS]
    usual = [field for field in USUAL_FIELDS if field in names]
    ordered = [*usual, *(field for field in names if field not in usual)]
    return [make_option(field, types[field], getattr(method, field), help_.get(field, "")) for field in ordered]


def make_option(name: str, hint: Any, value: Any, help_: str) -> Option:
    """Return one field of a method with words for a page. Ranges are checked where the method is made."""
    label, info = label_of(name), explain(help_)
    info = "" if info == f"{label}." else info
    plain = get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    if typing.get_origin(plain) is Literal:
        choices = tuple((REGION_WORDS.get(choice, str(choice)), str(choice)) for choice in get_args(plain))
        return Option(name, label, info, "choice", value, choices)
    kinds: dict[Any, InputKind] = {bool: "checkbox", int: "integer", float: "number"}
    return Option(name, label, info, "lines" if isinstance(value, tuple) else kinds.get(plain, "text"), value)


def render_form(name: str, model: DiffusionModel, kind: ConceptKind, is_local: bool) -> str:
    """Return the form of a method with its recipe.

    Raises:
        UserError: The method does not serve the model.
    """
    options = options_of(name, model, kind, is_local)
    usual, further = [o for o in options if o.usual], [o for o in options if not o.usual]
    return render_html("method_form", method=name, recipe=f"{model.source} {name} {kind}", usual=usual, further=further)


def read_form(text: str, name: str, model: DiffusionModel, kind: ConceptKind, is_local: bool) -> dict[str, Any]:
    """Return the fields that differ from the recipe.

    Args:
        text: JSON of the inputs: the method, and the value of every option. Inputs of another method are not read.

    Raises:
        UserError: An option is unknown or has no value that fits, or the method does not serve the model.
    """
    options = {option.name: option for option in options_of(name, model, kind, is_local)}
    given = parse_inputs(text)
    if given.get("method", name) != name:
        raise UserError("The options on the page are still those of another method. Wait a moment and press Erase again.")
    values = {field: value for field, value in given.items() if field != "method"}
    if unknown := sorted(set(values) - set(options)):
        raise UserError(f"Unknown option {unknown[0]!r} of {name}.")
    parsed = {field: options[field].parse(value) for field, value in values.items()}
    return {field: value for field, value in parsed.items() if value != options[field].value}


def parse_inputs(text: str) -> Mapping[str, object]:
    """Return the inputs of a form from their JSON.

    Raises:
        UserError: They are not a JSON object.
    """
    try:
        inputs = json.loads(text or "{}")
    except ValueError:
        inputs = None
    if not isinstance(inputs, dict):
        raise UserError("The options are not a JSON object.")
    return inputs


def explain(help_: str) -> str:
    """Return the help of a field without the symbols of papers."""
    text = FLAG.sub(lambda flag: f"“{label_of(flag[1].replace('-', '_'))}”", SYMBOLS.sub("", help_)).strip()
    return text[:1].upper() + text[1:] + "." if text else ""


def label_of(name: str) -> str:
    return LABELS.get(name, name.replace("_", " ").capitalize())
