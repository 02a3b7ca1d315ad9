"""Processes that this program starts run its own code, whatever the current folder holds."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from app.child_command import child_argv
from erasure.storage.run import read_json
from tests import tiny
from tests.factories import write_small_plan

HOSTILE = ("app", "eval", "erasure", "prompts", "torch", "numpy", "diffusers", "yaml", "json", "tyro", "sitecustomize")
CONSOLE = Path(sys.executable).with_name("erasure")
SMALL = ["--steps", "2", "--batch", "1", "--trajectories", "4", "--trajectory-steps", "2"]


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A user's folder with modules and folders named like ours; each writes a file when it is imported."""
    here = tmp_path / "here"
    here.mkdir()
    mark = f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__)\nraise SystemExit('a module of the current folder ran')\n"
    for name in HOSTILE:
        (here / f"{name}.py").write_text(mark)
    for name in ("app", "eval", "erasure", "prompts"):
        (here / name).mkdir()
        (here / name / "__init__.py").write_text(mark)
    (here / "prompts" / "pocket.yaml").write_text("not: a suite\n")
    return here


def run(argv: list[str], here: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    cache = str(here.parent / "cache")
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(argv, cwd=here, env={**clean, "ERASURE_CACHE": cache, **variables}, capture_output=True, text=True, check=False)
    assert not (here.parent / "ran").exists(), (here.parent / "ran").read_text()
    return done


@pytest.mark.skipif(not CONSOLE.exists(), reason="the project is not installed here")
def test_commands_jobs_and_workers_run_our_code(hostile: Path, tmp_path: Path) -> None:
    """The console script, the process that it starts itself again as, a plan's children, and an audit's workers."""
    erasure = str(CONSOLE)
    base = tiny.save_pipeline(tmp_path / "base", size=16, levels=3)
    plan = write_small_plan(tmp_path, ("uce",))
    done = run([erasure, "jobs", "run", str(plan)], hostile)
    assert done.returncode == 0, done.stderr[-1500:]
    (job,) = (tmp_path / "out").glob("uce-*")
    assert read_json(job / "done.json")["audits"]
    assert "a module of the current folder" not in (job / "log.txt").read_text()
    edit = hostile / "edit"
    done = run([erasure, "erase", "--concept", "neon", "--model", str(base), "--out", str(edit), *SMALL], hostile)
    assert done.returncode == 0, done.stderr[-1500:]
    suite = str(tmp_path / "suite.yaml")
    done = run(
        [erasure, "audit", str(edit), "--suite", suite, "--tier", "smoke", "--workers", "2", "--out", str(tmp_path / "audit")], hostile
    )
    assert done.returncode in (0, 3, 4), done.stderr[-1500:]
    assert (tmp_path / "audit" / "report.html").exists()


def test_a_child_finds_a_checkout_that_is_not_installed(hostile: Path) -> None:
    """-S leaves the environment's packages out; the variable adds them without the pointer to this checkout that is among them."""
    python, *words = child_argv("app.cli", "--help")
    done = run([python, "-S", *words], hostile, PYTHONPATH=sysconfig.get_paths()["purelib"])
    assert done.returncode == 0 and "usage: erasure [-h] {erase," in done.stdout, done.stderr[-1500:]


def test_shipped_suites_come_from_the_package(hostile: Path) -> None:
    """A name means the shipped file; one of the current folder is meant by its path."""
    names = "from eval.suites.suite import load_suite, suite_names; print(load_suite('pocket').name, *suite_names())"
    path = f"import sys; sys.path.append({str(Path(__file__).parent.parent.parent)!r})"
    done = run([sys.executable, "-P", "-c", f"{path}; {names}"], hostile)
    assert done.stdout.split()[0] == "pocket" and "unlearncanvas" in done.stdout, done.stderr[-1500:]
