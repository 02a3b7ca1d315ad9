"""The layers: app imports eval imports erasure, never back; light modules stay light; tests do not import each other."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ABOVE = {"erasure": {"eval", "app", "scripts", "tests"}, "eval": {"app", "scripts", "tests"}, "app": {"scripts", "tests"}}


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(ABOVE))
def test_no_package_imports_the_layer_above(package: str) -> None:
    files = list(Path(package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported_packages(path) & ABOVE[package], path


@pytest.mark.parametrize(
    "module",
    [
        "erasure.concept",
        "erasure.config.registry",
        "eval.stats.intervals",
        "eval.stats.clusters",
        "eval.suites.cases",
        "eval.suites.suite",
        "eval.report.numbers",
        "eval.scoring.attack_rates",
        "app.cli",
        "app.jobs.plan",
        "app.jobs.queue",
        "app.jobs.leaderboard",
        "app.jobs.tables",
        "app.commands.audit",
        "app.commands.erase",
    ],
)
def test_light_modules_import_no_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def imported_modules(node: ast.AST, known: set[str]) -> set[str]:
    """Return the modules of the project that a piece of code imports, inside of functions too, but not for type checkers alone."""
    modules: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            modules |= {alias.name for alias in child.names}
        elif isinstance(child, ast.ImportFrom) and child.module:
            modules |= {name if (name := f"{child.module}.{alias.name}") in known else child.module for alias in child.names}
        modules |= imported_modules(child, known)
    return modules & known


def test_no_imports_go_in_a_circle() -> None:
    files = {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for package in ABOVE for path in Path(package).rglob("*.py")
    }
    graph = {name: imported_modules(ast.parse(path.read_text(encoding="utf-8")), set(files)) - {name} for name, path in files.items()}
    assert "erasure.families.base" in graph["erasure.edits.edit"] and len(graph) > 200
    TopologicalSorter(graph).prepare()  # raises CycleError with the modules of the circle


def test_modules_and_functions_are_short() -> None:
    for path in (path for package in [*ABOVE, "scripts"] for path in Path(package).rglob("*.py")):
        code = path.read_text(encoding="utf-8")
        assert code.count("\n") <= 300, path
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = node.body[0] if ast.get_docstring(node) else None
                lines = node.end_lineno - node.lineno + 1 - (docstring.end_lineno - docstring.lineno + 1 if docstring else 0)  # type: ignore[operator]
                assert lines <= 50, f"{path}: {node.name} has {lines} lines beside its docstring"


def test_no_module_has_a_vague_name() -> None:
    banned = {"utils.py", "helpers.py", "common.py", "manager.py"}
    assert not [p for package in ABOVE for p in Path(package).rglob("*.py") if p.name in banned]


def declared_distributions() -> tuple[set[str], set[str]]:
    """Distributions of pyproject.toml, normalized: those that every user gets with the extras for users, and those for tests."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    used = [*project["dependencies"], *(line for name, lines in extras.items() if name != "test" for line in lines)]
    return {normalize(line) for line in used}, {normalize(line) for line in extras["test"]}


def normalize(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


@pytest.mark.parametrize("folder", [*sorted(ABOVE), "scripts", "tests"])
def test_every_imported_distribution_is_declared(folder: str) -> None:
    """A distribution that is only a dependency of another one may disappear with its next release."""
    users, testers = declared_distributions()
    allowed = users if folder in ABOVE else users | testers
    own = {*ABOVE, "scripts", "tests", *(path.stem for path in Path("scripts").iterdir())}
    distributions = packages_distributions()
    modules = {name for path in Path(folder).rglob("*.py") for name in imported_packages(path)} - own - sys.stdlib_module_names
    assert modules
    unknown = {
        name: distributions.get(name, ["not installed"])
        for name in modules
        if not {normalize(d) for d in distributions.get(name, [name])} & allowed
    }
    assert not unknown, unknown


def test_importing_the_project_turns_telemetry_of_libraries_off() -> None:
    """Before any library is imported, and without overriding the user's choice."""
    code = "import erasure, os, sys; print(*(os.environ[name] for name in sys.argv[1:]), 'huggingface_hub' in sys.modules)"
    names = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED")
    clean = {key: value for key, value in os.environ.items() if key not in names}
    for own, expected in (({}, "1 1 False False"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0 1 False False")):
        done = subprocess.run([sys.executable, "-c", code, *names], env={**clean, **own}, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_no_test_imports_another_test() -> None:
    """Shared fixtures are in tests/conftest.py, shared builders in modules beside it."""
    paths = list(Path("tests").rglob("*.py"))
    assert len(paths) > 60
    for path in paths:
        assert not re.search(r"^\s*(from|import) tests\.\S*\btest_", path.read_text(encoding="utf-8"), re.M), path
