"""The two types of suites: what the reader parses into them, and what differs between them."""

from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from erasure.errors import UserError
from eval.auditing.prepare import suite_digest
from eval.records.gates import Gate
from eval.scoring.judge_scores import build_judges
from eval.suites.cases import suite_cases
from eval.suites.formats import (
    AttackSpec,
    CellImages,
    ExtractorSpec,
    GridSuite,
    JudgeSpec,
    ListTier,
    PromptListSuite,
    SuiteAttacks,
    SuiteSettings,
    check_has_prompts,
)
from eval.suites.list_reader import ListedPrompt
from eval.suites.suite import _SUITE_PARSER, SUITES_FOLDER, load_suite, suite_names
from tests.factories import pocket_suite

PROMPT_LIST: dict[str, Any] = {
    "name": "boats",
    "version": 1,
    "format": "prompt_list",
    "concept": "a boat",
    "label": "boat",
    "names": ["ships"],
    "kind": "object",
    "judge": {"judge": "pocket_object", "calibration": "boats.json"},
    "clip": "open_clip",
    "list": "list.txt",
    "steps": 2,
    "guidance": 4.0,
    "tiers": {"smoke": {"images": 2, "prompts": 1}, "standard": {"images": 1}, "full": {"images": 1}},
    "gates": {"erased": {"rate": "UA", "at_least": 0.5}},
    "features": {"extractor": "open_clip", "model": "ViT-B-32"},
    "attacks": {
        "tiers": ["full"],
        "prompts": 3,
        "images": 2,
        "fresh_images": 1,
        "use": {"seed_search": None, "again": {"attack": "relearning", "steps": 2}},
    },
}


def write_suite(folder: Path, record: dict[str, Any]) -> str:
    (folder / "list.txt").write_text("sails\nmasts\nhulls\n")
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(record, sort_keys=False))
    return str(path)


def test_a_prompt_list_is_parsed_into_its_own_type(tmp_path: Path) -> None:
    suite = load_suite(write_suite(tmp_path, PROMPT_LIST))
    assert isinstance(suite, PromptListSuite)
    assert suite.judges == {"object": JudgeSpec("pocket_object", {}, "boats.json"), "clip": JudgeSpec("open_clip")}
    assert suite.gates == (Gate(name="erased", rate="UA", at_least=0.5),)
    assert suite.features == ExtractorSpec("open_clip", {"model": "ViT-B-32"})
    attacks = (AttackSpec("seed_search", "seed_search"), AttackSpec("again", "relearning", {"steps": 2}))
    assert suite.attacks == SuiteAttacks(("full",), 3, 2, 1, attacks)
    assert suite.tiers == {"smoke": ListTier(2, 1), "standard": ListTier(1), "full": ListTier(1)}
    assert (suite.axis, suite.label, suite.names, suite.file) == ("object", "boat", ("a boat", "boat", "ships"), "suite.yaml")
    assert suite.prompts == tuple(ListedPrompt(text, str(line)) for line, text in enumerate(("sails", "masts", "hulls"), 1))
    assert suite.phrases("object") == {"boat": "a boat"} and suite.phrases("style") == {}
    with pytest.raises(FrozenInstanceError):
        suite.label = "ship"  # type: ignore[misc]


def test_a_grid_is_parsed_into_its_own_type() -> None:
    suite = pocket_suite()
    assert suite.tiers["smoke"] == CellImages(target=3, other=1) and suite.tiers["smoke"].other == 1
    assert suite.judges == {"style": JudgeSpec("pocket_style"), "object": JudgeSpec("pocket_object")}
    assert suite.features == ExtractorSpec("judge") and suite.aliases["neon"].named and suite.file == ""
    assert all(isinstance(gate, Gate) for gate in suite.gates) and "soft_prefix" in {spec.attack for spec in suite.attacks.use}
    assert load_suite("unlearncanvas").features is None  # an empty mapping in the file


def test_the_types_share_only_what_both_formats_have() -> None:
    shared = {field.name for field in fields(SuiteSettings)}
    grid, prompt_list = ({field.name for field in fields(cls)} - shared for cls in (GridSuite, PromptListSuite))
    assert grid & prompt_list == {"format", "tiers"}  # tiers count different things
    assert {"template", "styles", "aliases", "perturbations", "neighbors", "seeds"} <= grid
    assert {"concept", "label", "kind", "names", "prompts", "origin"} <= prompt_list


def test_the_field_format_decides_the_type(tmp_path: Path) -> None:
    suite = load_suite(write_suite(tmp_path, PROMPT_LIST))
    record = {field.name: getattr(suite, field.name) for field in fields(suite)}
    assert _SUITE_PARSER.validate_python(record) == suite
    for change in ({"format": "grid"}, {"format": "list"}, {"template": "{object}"}, {"tiers": {"smoke": {"images": 1, "cells": 2}}}):
        with pytest.raises(ValidationError):
            _SUITE_PARSER.validate_python({**record, **change})


@pytest.mark.parametrize("suite_format", ["grid", "prompt_list"])
def test_all_faults_are_told_at_once(tmp_path: Path, suite_format: str) -> None:
    grid = yaml.safe_load((SUITES_FOLDER / "pocket.yaml").read_text(encoding="utf-8"))
    record = {**(grid if suite_format == "grid" else PROMPT_LIST), "steps": 0, "gates": {"erased": {"rate": "UAA", "at_least": 1}}}
    if suite_format == "grid":
        del record["format"]  # a grid without the key is told so, with everything else
    with pytest.raises(UserError) as caught:
        load_suite(write_suite(tmp_path, record))
    message = str(caught.value)
    assert "steps must be greater than or equal to 1, got 0" in message and "Did you mean 'UA'" in message
    assert ("lacks format" in message) == (suite_format == "grid")


def test_a_default_clip_judge_comes_only_with_pockets_judges(tmp_path: Path) -> None:
    (tmp_path / "boats.json").write_text("{}")
    spec = {**PROMPT_LIST, "judge": {"judge": "pocket_object", "calibration": str(tmp_path / "boats.json")}}
    without = {key: value for key, value in spec.items() if key != "clip"}
    assert list(build_judges(load_suite(write_suite(tmp_path, without)))) == ["clip", "object"]
    other = {**without, "judge": {"judge": "imagenet", "weights": "nowhere.pth"}}
    assert list(build_judges(load_suite(write_suite(tmp_path, other)))) == ["object"]


def test_a_list_without_prompts_is_refused_and_a_grid_needs_none(tmp_path: Path) -> None:
    suite = load_suite(write_suite(tmp_path, PROMPT_LIST))
    check_has_prompts(suite)
    check_has_prompts(pocket_suite())
    with pytest.raises(UserError, match="ships no prompts; give your own copy"):
        check_has_prompts(replace(suite, prompts=()))  # type: ignore[type-var]
    for name in suite_names():
        assert (load_suite(name).format == "grid") == (name in suite_names(complete=True))


def test_the_digest_of_a_suite_is_of_what_decides_its_images(tmp_path: Path) -> None:
    """Gates, judges, excluded styles and the name of the file decide none; prompts, tiers, seeds and attacks do."""
    suite = pocket_suite()
    same: list[dict[str, Any]] = [{"gates": ()}, {"judges": {}}, {"excluded": ()}, {"published": "unlearncanvas"}, {"file": "own.yaml"}]
    assert {suite_digest(replace(suite, **change)) for change in same} == {suite_digest(suite)}
    other: list[dict[str, Any]] = [{"seeds": (1, 2)}, {"steps": 3}, {"attacks": SuiteAttacks()}, {"template": "{style} {object}"}]
    assert len({suite_digest(suite), *(suite_digest(replace(suite, **change)) for change in other)}) == 5
    listed = load_suite(write_suite(tmp_path, PROMPT_LIST))
    assert isinstance(listed, PromptListSuite) and suite_digest(replace(listed, origin=None)) == suite_digest(listed)
    assert suite_digest(replace(listed, prompts=listed.prompts[:1])) != suite_digest(listed)


def test_cases_of_both_formats_have_roles_of_their_own(tmp_path: Path) -> None:
    listed, replay = load_suite(write_suite(tmp_path, PROMPT_LIST)), [ListedPrompt("again", "1", seed=4, guidance=2.0)]
    cases = suite_cases(listed, [("object", "boat")], "smoke", replay)
    assert [(case.role, case.prompt, case.count) for case in cases] == [("prompt_list", "sails", 2), ("replayed", "again", 1)]
    assert (cases[1].list_seed, cases[1].guidance) == (4, 2.0)
    roles = {case.role for case in suite_cases(pocket_suite(), [("style", "neon")], "standard", replay)}
    assert roles == {"grid", "named", "described", "perturbed", "replayed"}
    assert (SUITES_FOLDER / "pocket.yaml").is_file()
    with pytest.raises(UserError, match=r"unknown tier 'ful'\. Did you mean 'full'"):
        suite_cases(listed, [], "ful")
