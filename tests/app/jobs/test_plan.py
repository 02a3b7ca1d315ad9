"""Plans: lists multiply, mistakes are named, jobs are distinguished."""

from pathlib import Path

import pytest

from app.jobs.plan import JobSpec, load_plan
from erasure.concept import Concept
from erasure.errors import UserError


def write_plan(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return path


def test_lists_multiply(tmp_path: Path) -> None:
    plan = load_plan(
        write_plan(
            tmp_path,
            """
suite: pocket
fields: {trajectory_steps: 5}
jobs:
  - {concept: [neon, sketch, "fish; boat"], method: [esd, salun], seed: [0, 1], fields: {lr: [1.0e-4, 2.0e-4, 3.0e-4]}}
  - {concept: {name: tree, anchor: house}, kind: object, method: fia, fields: {trajectory_steps: 9}, tier: standard}
""",
        )
    )
    assert len(plan.jobs) == 3 * 2 * 2 * 3 + 1
    assert len({plan.folder(spec) for spec in plan.jobs}) == len(plan.jobs)
    first, last = plan.jobs[0], plan.jobs[-1]
    assert (first.method, first.seed, first.fields, first.suite, first.tier) == (
        "esd",
        0,
        {"lr": 1e-4, "trajectory_steps": 5},
        "pocket",
        "smoke",
    )
    assert last.concepts == (Concept(name="tree", kind="object", anchor="house"),)
    assert (last.fields, last.tier) == ({"trajectory_steps": 9}, "standard")
    assert [c.name for c in plan.jobs[24].concepts] == ["fish", "boat"]
    assert plan.out == Path("runs/plan")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("jobs: []", "list under `jobs`"),
        ("- neon", "list under `jobs`"),
        ("jobs: [neon]", "job 1 must be a mapping"),
        ("suit: pocket\njobs: [{concept: neon}]", "Did you mean 'suite'"),
        ("jobs: [{concpt: neon}]", "Did you mean 'concept'"),
        ("jobs: [{method: esd}]", "names no concept"),
        ("jobs: [{concept: neon, fields: [1]}]", "must be a mapping of a method's options"),
        ("jobs: [{concept: 5}]", "a name or a mapping"),
        ("jobs: [{concept: {kind: style}}]", "job 1, concept lacks name"),
        ("jobs: [{concept: {name: neon, sort: style}}]", "unknown key in .* job 1, concept 'sort'"),
        ("jobs: [{concept: neon, kind: colour}]", "unknown kind"),
        ("jobs: [{concept: neon, seed: many}]", "seed must be a whole number, got 'many'"),
        ("jobs: [{concept: neon, seed: true}]", "seed must be a whole number, got True"),
        ("jobs: [{concept: neon, tier: stadnard}]", "unknown tier .* Did you mean 'standard'"),
        ("jobs: [{concept: neon, suite: [pocket, 3]}]", "suite must be text, got 3"),
        ("jobs: [{concept: neon, prompts: 'a {}'}]", "prompts must be a list"),
        ("jobs: [{concept: {name: 3}}]", "name must be text, got 3"),
        ("out: 3\njobs: [{concept: neon}]", "out must be a folder, got 3"),
        ("jobs: [{concept: neon}, {concept: [sketch, neon]}]", "job 2 repeats a job above it"),
        ("jobs: [{concept: neon", "line 1: expected ',' or '}'"),
        ("seed: 1\njobs: [{concept: neon}]\nseed: 2", "line 3: the key 'seed' is duplicated"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_plan(write_plan(tmp_path, text))


def test_all_faults_of_a_plan_are_listed_at_once(tmp_path: Path) -> None:
    text = """
foo: 1
jobs:
  - {concept: neon, method: esdd, seed: -1}
  - {concept: neon, fields: {lrr: 3}}
  - {bar: 2}
"""
    with pytest.raises(UserError) as caught:
        load_plan(write_plan(tmp_path, text))
    message = str(caught.value)
    assert "has 6 faults: (1) unknown key 'foo'" in message
    for words in (
        "job 1: seed must be",
        "method, job 1 'esdd'",
        "field, job 2 'lrr'. Did you mean 'lr'",
        "key, job 3 'bar'",
        "job 3 names no",
    ):
        assert words in message


def test_a_missing_plan(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml does not exist"):
        load_plan(tmp_path / "none.yaml")


def test_a_spec_survives_its_file(tmp_path: Path) -> None:
    spec = JobSpec(
        concepts=(Concept(name="a/b c", prompts=("{}", "x {} | x")),), fields={"retain_prompts": ["a", "b"], "lr": 0.1}, suite="pocket"
    )
    spec.save(tmp_path / "spec.json")
    loaded = JobSpec.load(tmp_path / "spec.json")
    assert loaded == spec
    assert loaded.folder_name == spec.folder_name
    assert "/" not in spec.folder_name and " " not in spec.folder_name


def test_a_broken_spec_is_named(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    for text, complaint in (
        ("[]", "is not a job"),
        ('{"concepts": [{"name": "a"}], "metod": "esd"}', "Did you mean 'method'"),
        ("{", "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=complaint):
            JobSpec.load(path)
