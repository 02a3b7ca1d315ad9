"""The fields, recipes and comments of a method's class, read from its source without importing torch.

So help and errors about flags appear before torch is imported. Imports of this project are read in the same way. Functions, and values that
need torch, are left out; a test compares the static class of every method with the class itself.
"""

import ast
import importlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from erasure.config.registry import PARSING, check_module_name

TORCH_FREE_MODULES = (
    "erasure.config.choices",
    "erasure.concept",
    "erasure.errors",
    "erasure.prompt_templates",
    "erasure.pocket.prompts",
)  # modules that do not import torch
OWN_PACKAGE = "erasure"
SOURCE_ROOT = Path(__file__).parent.parent.parent
METHOD_BASE = "erasure.methods.base:Method"  # the base class of every method


class Placeholder:
    """A placeholder for anything from a library that is not imported."""

    def __getattr__(self, name: str) -> "Placeholder":
        return self

    def __getitem__(self, key: Any) -> "Placeholder":
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())  # by __getitem__ alone, a loop over it would never end

    def __or__(self, other: Any) -> "Placeholder":
        return self

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()


def load_static_class(package: str, name: str, base: str) -> type:
    """Return the class that `erasure.config.registry.load_class` returns, with its fields alone.

    Args:
        base: module and name of the base class, such as "erasure.methods.base:Method".

    Raises:
        UserError: no such module; the message suggests the nearest name.
    """
    module = f"{package}.{check_module_name(package, name)}"
    base_module, _, base_name = base.partition(":")
    base_class = read_static_module(base_module)[base_name]
    (matching,) = [
        value
        for value in read_static_module(module).values()
        if isinstance(value, type) and issubclass(value, base_class) and value.__module__ == module and not value.__name__.startswith("_")
    ]
    return matching


@cache
def read_static_module(module: str) -> dict[str, Any]:
    """Return the names of a module: its imports, its constants, and its classes with their fields alone.

    Raises:
        ImportError: the module has no source.
    """
    source = module_path_of(module)
    if source is None:
        raise ImportError(f"{module} has no source")
    namespace: dict[str, Any] = {"__name__": module}
    with PARSING:
        tree = ast.parse(source.read_text(encoding="utf-8"))
    for node in tree.body:
        match node:
            case ast.Import(names=names):
                namespace.update(
                    {(a.asname or a.name.split(".")[0]): import_stdlib(a.name if a.asname else a.name.split(".")[0]) for a in names}
                )
            case ast.ImportFrom(module=str(package), names=names):
                namespace.update({(a.asname or a.name): import_member(package, a.name) for a in names})
            case ast.Assign() | ast.AnnAssign():
                run_statement(node, namespace)
            case ast.ClassDef():
                field_nodes = [part for part in node.body if isinstance(part, ast.AnnAssign) or is_docstring(part)]
                node.body = field_nodes or [ast.Pass()]
                run_statement(node, namespace)
    return namespace


def module_path_of(module: str) -> Path | None:
    """Return the path of a module of this project. importlib would import the packages above it, and torch with them."""
    path = SOURCE_ROOT.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def run_statement(node: ast.stmt, namespace: dict[str, Any]) -> None:
    """Run one statement of our own source; names that need a library that is not imported become placeholders."""
    try:
        exec(compile(ast.fix_missing_locations(ast.Module([node], [])), namespace["__name__"], "exec"), namespace)
    except (TypeError, NameError, AttributeError, LookupError):
        names = [node.name] if isinstance(node, ast.ClassDef) else [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
        namespace.update({name: Placeholder() for name in names if name not in namespace})


def is_docstring(node: ast.stmt) -> bool:
    """Return whether a statement is a constant alone, such as a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def import_stdlib(module: str) -> Any:
    """Import a module of the standard library; return a placeholder for any other."""
    return importlib.import_module(module) if module.split(".")[0] in sys.stdlib_module_names else Placeholder()


def import_member(source: str, name: str) -> Any:
    """Return the value of `from source import name`, or a placeholder."""
    full_name, top_package = f"{source}.{name}", source.split(".")[0]
    if top_package in sys.stdlib_module_names or source in TORCH_FREE_MODULES:
        return getattr(importlib.import_module(source), name)
    if full_name in TORCH_FREE_MODULES:
        return importlib.import_module(full_name)
    if top_package != OWN_PACKAGE:
        return Placeholder()
    return StaticModule(full_name) if module_path_of(full_name) else read_static_module(source).get(name, Placeholder())


class StaticModule:
    """A module of this project that is read instead of imported."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:
        return read_static_module(self.name).get(name, Placeholder())
