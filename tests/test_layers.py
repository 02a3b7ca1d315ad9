"""The floors of the house: app imports eval imports erasure, never back; light modules stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ABOVE = {"erasure": {"eval", "app", "scripts", "tests"}, "eval": {"app", "scripts", "tests"}, "app": {"scripts", "tests"}}


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("floor", sorted(ABOVE))
def test_no_import_runs_upwards(floor: str) -> None:
    files = list(Path(floor).rglob("*.py"))
    assert files
    for path in files:
        assert not imports(path) & ABOVE[floor], path


@pytest.mark.parametrize(
    "module",
    [
        "erasure.concept",
        "erasure.discover",
        "eval.statistics",
        "eval.clusters",
        "eval.cases",
        "eval.suites",
        "eval.attack_rates",
        "app.cli",
        "app.plan",
        "app.jobs",
        "app.board",
        "app.table",
        "app.commands.audit",
        "app.commands.erase",
    ],
)
def test_light_modules_import_no_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_no_module_hides_what_it_does() -> None:
    banned = {"utils.py", "helpers.py", "common.py", "manager.py"}
    assert not [p for floor in ABOVE for p in Path(floor).rglob("*.py") if p.name in banned]
