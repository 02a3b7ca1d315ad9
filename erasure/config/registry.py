"""The registry is a folder of modules: to add a method, judge, metric or attack, add one file."""

import ast
import importlib
import inspect
import pkgutil
import re
import threading
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from erasure.errors import unknown_value_error

T = TypeVar("T")

# Before 3.11.8 and 3.12.2, ast counts its depth once per process: two threads that parse at once get a SystemError (gh-106905).
PARSING = threading.RLock()


def list_modules(package: str) -> list[str]:
    """Return the module names in a package such as "erasure.methods", without importing them; `base` and private modules are left out.

    Raises:
        ImportError: not a package.
    """
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"{package} is not a package")
    modules = pkgutil.iter_modules(list(spec.submodule_search_locations))
    return sorted(module.name for module in modules if module.name != "base" and not module.name.startswith("_"))


@cache
def read_summary(package: str, name: str) -> str:
    """Return the first line of a module's docstring, without importing the module.

    Raises:
        UserError: no such module; the message suggests the nearest name.
        ImportError: the module has no source.
    """
    spec = find_spec(f"{package}.{check_module_name(package, name)}")
    if spec is None or spec.origin is None:
        raise ImportError(f"{package}.{name} has no source")
    source = Path(spec.origin).read_text(encoding="utf-8")
    with PARSING:
        return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def load_class(package: str, name: str, base: type[T]) -> type[T]:
    """Return the one public subclass of `base` that a module defines.

    Raises:
        UserError: no such module; the message suggests the nearest name.
        TypeError: the module defines no such class, or several.
    """
    module = importlib.import_module(f"{package}.{check_module_name(package, name)}")
    classes = [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, base) and cls.__module__ == module.__name__ and not cls.__name__.startswith("_")
    ]
    if len(classes) != 1:
        raise TypeError(f"{module.__name__} must define exactly one {base.__name__}, has {[other.__name__ for other in classes]}")
    return classes[0]


def field_help_of(cls: type) -> dict[str, str]:
    """Return the comment behind every field of a dataclass and its bases, which is the help text of the field."""
    help_texts: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        source = class_source_of(base)
        help_texts.update(re.findall(r"^    (\w+): [^#\n]+#\s*(.+)$", source, re.MULTILINE))
    return help_texts


@cache
def class_source_of(cls: type) -> str:
    """Return the source of a class, also of one that erasure.config.static_classes has read without importing; empty if there is none."""
    try:
        with PARSING:
            return inspect.getsource(cls)
    except (OSError, TypeError):
        spec = find_spec(cls.__module__)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return ""
    text = Path(spec.origin).read_text(encoding="utf-8")
    with PARSING:
        nodes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == cls.__name__]
    return "\n".join(ast.get_source_segment(text, node) or "" for node in nodes)


def check_module_name(package: str, name: str) -> str:
    """Return the name if it is a module of the package.

    Raises:
        UserError: no such module; the message suggests the nearest name.
    """
    if name not in list_modules(package):
        raise unknown_value_error(package.rsplit(".", 1)[-1].rstrip("s"), name, list_modules(package))
    return name
