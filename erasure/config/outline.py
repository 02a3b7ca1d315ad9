"""The fields, recipes and remarks of a method's class, read from its source without importing what it computes with.

Help and complaints about flags answer before torch is imported. Imports of this project are read in the same way, functions are left
out, and a value that needs torch is left out as well; a test holds every method's outline against the class itself.
"""

import ast
import importlib
import sys
from functools import cache
from pathlib import Path
from typing import Any

from erasure.config.registry import checked

LIGHT = (
    "erasure.config.choices",
    "erasure.concept",
    "erasure.errors",
    "erasure.prompt_templates",
    "erasure.pocket.sentences",
)  # import no torch
OWN = "erasure"
ROOT = Path(__file__).parent.parent.parent
METHOD = "erasure.methods.base:Method"  # what every method descends from


class Absent:
    """Stands for whatever comes from a library that is not imported."""

    def __getattr__(self, name: str) -> "Absent":
        return self

    def __getitem__(self, key: Any) -> "Absent":
        return self

    def __or__(self, other: Any) -> "Absent":
        return self

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()


def outline(package: str, name: str, base: str) -> type:
    """The public class of a module that descends from `base`, as `erasure.config.registry.load` finds it, with its fields alone.

    Args:
        base: module and name of the base class, such as "erasure.methods.base:Method".

    Raises:
        UserError: no such module; the nearest name is offered.
    """
    module = f"{package}.{checked(package, name)}"
    home, _, of = base.partition(":")
    above = read(home)[of]
    (found,) = [
        value
        for value in read(module).values()
        if isinstance(value, type) and issubclass(value, above) and value.__module__ == module and not value.__name__.startswith("_")
    ]
    return found


@cache
def read(module: str) -> dict[str, Any]:
    """The names of a module: its imports, constants and classes with nothing but their fields."""
    source = source_of(module)
    if source is None:
        raise ImportError(f"{module} has no source")
    space: dict[str, Any] = {"__name__": module}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        match node:
            case ast.Import(names=names):
                space.update({(a.asname or a.name.split(".")[0]): brought(a.name if a.asname else a.name.split(".")[0]) for a in names})
            case ast.ImportFrom(module=str(package), names=names):
                space.update({(a.asname or a.name): member(package, a.name) for a in names})
            case ast.Assign() | ast.AnnAssign():
                evaluate(node, space)
            case ast.ClassDef():
                kept = [part for part in node.body if isinstance(part, ast.AnnAssign) or is_text(part)]
                node.body = kept or [ast.Pass()]
                evaluate(node, space)
    return space


def source_of(module: str) -> Path | None:
    """Where a module of this project stands. Importlib would import the packages above it, and torch with them."""
    path = ROOT.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def evaluate(node: ast.stmt, space: dict[str, Any]) -> None:
    """Run one statement of our own source; what needs an absent library stays absent."""
    try:
        exec(compile(ast.fix_missing_locations(ast.Module([node], [])), space["__name__"], "exec"), space)
    except (TypeError, NameError, AttributeError):
        names = [node.name] if isinstance(node, ast.ClassDef) else [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
        space.update({name: Absent() for name in names if name not in space})


def is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def brought(module: str) -> Any:
    """A module of the standard library; any other stays absent."""
    return importlib.import_module(module) if module.split(".")[0] in sys.stdlib_module_names else Absent()


def member(source: str, name: str) -> Any:
    """What `from source import name` brings."""
    full, top = f"{source}.{name}", source.split(".")[0]
    if top in sys.stdlib_module_names or source in LIGHT:
        return getattr(importlib.import_module(source), name)
    if full in LIGHT:
        return importlib.import_module(full)
    if top != OWN:
        return Absent()
    return Module(full) if source_of(full) else read(source).get(name, Absent())


class Module:
    """A module of this project that is read, not imported."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:
        return read(self.name).get(name, Absent())
