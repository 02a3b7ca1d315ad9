"""Plans, suites, lists and addresses that cannot be: each is refused in one short line."""

from pathlib import Path

import pytest
import yaml

from app.jobs.plan import MAX_JOBS, JobSpec, load_plan
from erasure.errors import MAX_MESSAGE_CHARS, UserError
from erasure.loading.loader import load_model
from erasure.storage.run import read_json
from eval.suites.list_reader import read_prompt_list
from eval.suites.suite import SUITES_FOLDER, load_suite

LONG, DIGITS = "x" * 5000, "9" * 5000


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("jobs: [{concept: a, seed: 9223372036854775808}]", "less than 9223372036854775808"),
        ("jobs: [{concept: a, seed: -1}]", "greater than or equal to 0"),
        (f"jobs: [{{concept: a, seed: {DIGITS}}}]", "cannot be read as YAML"),
        ("jobs: [{concept: a, method: ../../x}]", "unknown method"),
        ("jobs: [{concept: a, fields: {1: 2}}]", "must be text"),
        ("jobs: [{concept: a, fields: {lr: 2020-01-01}}]", "got datetime"),
        ("out: pyproject.toml/x\njobs: [{concept: a}]", "is a file"),
        ('out: "a\\0b"\njobs: [{concept: a}]', "NUL"),
        (f"out: {LONG}\njobs: [{{concept: a}}]", "255 bytes"),
        (
            f"jobs: [{{concept: a, seed: {[*range(101)]}, fields: {{trajectories: {[*range(100)]}}}}}]",
            f"{MAX_JOBS:,} jobs",
        ),
    ],
)
def test_impossible_plans_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint) as caught:
        load_plan(path)
    assert len(str(caught.value)) < MAX_MESSAGE_CHARS + 60


@pytest.mark.parametrize("where", ["tiers", "attacks"])
def test_counts_of_a_suite_have_an_upper_end(tmp_path: Path, where: str) -> None:
    suite = yaml.safe_load((SUITES_FOLDER / "pocket.yaml").read_text())
    if where == "tiers":
        suite["tiers"]["smoke"] = [10**12, 1]
    else:
        suite["attacks"]["images"] = 10**12
    path = tmp_path / "s.yaml"
    path.write_text(
        yaml.safe_dump({**suite, "benign": str(SUITES_FOLDER / suite["benign"])}) if "benign" in suite else yaml.safe_dump(suite)
    )
    with pytest.raises(UserError, match="less than or equal to 10000"):
        load_suite(str(path))


def test_files_that_are_too_deep_or_too_long(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("[" * 100_000, f'{{"a": {DIGITS}}}'):
        path.write_text(text)
        with pytest.raises(UserError, match="cannot be read as JSON"):
            read_json(path)
        with pytest.raises(UserError, match="cannot be read as JSON"):
            JobSpec.load(path)
    (tmp_path / "list.csv").write_text(f"prompt,seed\na cat,{DIGITS}\n")
    with pytest.raises(UserError, match="column seed"):
        read_prompt_list(tmp_path / "list.csv")


OUTSIDE = ["a/b/../..", "a/b/..", "a/b//etc/passwd", "../b/c.csv", "a/../c.csv", "a/b/c/../../d.csv", "a/b/./c.csv", f"a/b/{LONG}"]


@pytest.mark.parametrize("source", [f"hub:{address}" for address in OUTSIDE])
def test_addresses_on_the_hub_stay_inside_it(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eval.suites.list_reader import locate_list

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError):
        locate_list(source)


@pytest.mark.parametrize("source", ["a/b/../..", "hub:a/b/../..", f"{LONG}/{LONG}", "../..", "a//b", "./-", "a\nb/c"])
def test_model_names_that_are_not_valid_are_refused(source: str) -> None:
    with pytest.raises(UserError):
        load_model(source)
