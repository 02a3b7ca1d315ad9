"""The reference pages of methods, attacks and judges, from their classes."""

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from reference_pages.fields import describe_fields, describe_value, format_table

from erasure.config.registry import list_modules, load_class
from erasure.methods.base import Guided, Method, Trained, TrainingFree
from eval.attacks.base import Attack, WeightAttack
from eval.judges.base import Judge

SHAPES = {Trained: "trained", TrainingFree: "training-free", Guided: "guided"}
PRODUCTS = {"weights": "changed weights", "guidance": "guidance during sampling", "one-step": "a one-step generator"}
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
FLAG = re.compile(r"(?<![\w`-])--[a-z][a-z-]*")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`])")


def methods_page() -> list[str]:
    classes = load_all("erasure.methods", Method)
    rows = [[f"[{name}](#{name})", f"`{shape_of(cls)}`", mark_flags(cls.changes), cls.when] for name, cls in classes.items()]
    return [
        "Every erasure method, with its options and their defaults. `erasure erase --method NAME` takes each option as",
        "`--option VALUE`, a plan takes it under `fields`, and `erasure.erase` takes it as a keyword.",
        "",
        "Defaults are those of the paper. A recipe replaces some of them for a kind of concept and a model family.",
        "What each method costs and how well it does on the shipped model: [the methods in figures](../results/methods.md).",
        "",
        *format_table(["method", "shape", "changes", "choose it"], rows),
        *(line for name, cls in classes.items() for line in describe_method(name, cls)),
    ]


def describe_method(name: str, cls: type[Method]) -> Iterator[str]:
    yield from heading(name, cls)
    yield from facts({"Shape": shape_of(cls), "Result": PRODUCTS[cls.product], "Changes": mark_flags(cls.changes), "Choose it": cls.when})
    yield from field_table(cls)
    if cls.recipes:
        yield from ["", "Recipes:", "", *format_table(["kind and model family", "values"], recipe_rows(cls))]


def mark_flags(text: str) -> str:
    """Return a text with its flags as code, which does not break after the hyphens."""
    return FLAG.sub(r"`\g<0>`", text)


def shape_of(cls: type[Method]) -> str:
    return next(name for base, name in SHAPES.items() if issubclass(cls, base))


def recipe_rows(cls: type[Method]) -> list[list[str]]:
    """Return a row for every different recipe, with all kinds and families that it is for."""
    users: dict[str, list[str]] = {}
    for (kind, family), values in cls.recipes.items():
        users.setdefault(describe_recipe(values), []).append(f"{kind} on {family}")
    return [[", ".join(names), values] for values, names in users.items()]


def describe_recipe(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}: {len(value)} prompts" if isinstance(value, tuple) and len(value) > 2 else f"{name}: {describe_value(value)}"
        for name, value in values.items()
    )


def attacks_page() -> list[str]:
    classes = load_all("eval.attacks", Attack)
    rows = [[f"[{name}](#{name})", "weights" if issubclass(cls, WeightAttack) else "prompts", cls.threat] for name, cls in classes.items()]
    return [
        "Every attack, with its budget. A suite names its attacks and their fields under `attacks`, `use`",
        "([suite keys](suites.md)).",
        "",
        "How to run and read them: [attack an erasure](../guides/attack.md).",
        "",
        *format_table(["attack", "searches", "the attacker"], rows),
        *(line for name, cls in classes.items() for line in describe_attack(name, cls)),
    ]


def describe_attack(name: str, cls: type[Attack]) -> Iterator[str]:
    yield from heading(name, cls)
    yield from facts({"The attacker": cls.threat, "Control": "yes: it searches nothing" if cls.control else "no"})
    yield from field_table(cls)


def judges_page() -> list[str]:
    classes = load_all("eval.judges", Judge)
    return [
        "Every judge, with its fields. A suite names its judges under `judges` ([suite keys](suites.md)); a judge says what",
        "an image shows and never generates one.",
        "",
        "`erasure doctor` says which judges are ready on this machine. A judge whose weights are missing is a named gap.",
        "",
        *(line for name, cls in classes.items() for line in describe_judge(name, cls)),
    ]


def describe_judge(name: str, cls: type[Judge]) -> Iterator[str]:
    yield from heading(name, cls)
    size = f"{cls.image_size}x{cls.image_size} pixels only" if cls.image_size else "any size"
    yield from facts({"Weights": "your own copy" if cls.optional else "shipped, or named by a field", "Images": size})
    yield from field_table(cls)


def load_all(package: str, base: type[Any]) -> dict[str, type[Any]]:
    return {name: load_class(package, name, base) for name in list_modules(package)}


def heading(name: str, cls: type) -> Iterator[str]:
    """Yield a heading with the docstring of the module and that of the class."""
    module_text = inspect.getdoc(import_module(cls.__module__)) or ""
    class_text = (inspect.getdoc(cls) or "").partition("\nRaises:")[0]
    yield from ["", f"## {name}", ""]
    for text in (module_text, class_text):
        follows_equation = False
        for paragraph in filter(None, text.split("\n\n")):
            if is_equation := paragraph.startswith("    "):
                yield from ["```text", *textwrap.dedent(paragraph).rstrip().split("\n"), "```", ""]
            else:
                yield from [*map(link_papers, split_sentences(paragraph, capitalize=not follows_equation)), ""]
            follows_equation = is_equation


def split_sentences(paragraph: str, capitalize: bool) -> list[str]:
    """Return one line per sentence, so that a change of one word changes one line of the page."""
    text = " ".join(paragraph.split())
    return SENTENCE_END.split(text[:1].upper() + text[1:] if capitalize else text)


def link_papers(text: str) -> str:
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def facts(values: Mapping[str, str]) -> list[str]:
    return [f"- **{name}**: {value}" for name, value in values.items()]


def field_table(cls: type) -> list[str]:
    rows = [[f"`{row.name}`", row.type, row.default or "required", row.meaning] for row in describe_fields(cls)]
    return ["", *format_table(["field", "type", "default", "meaning"], rows)] if rows else ["- **Fields**: none"]
