"""The shipped suites: enough different prompts for every concept, and no concept name in descriptions and captions."""

import importlib
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from erasure.errors import UserError
from eval.records.axes import Axis
from eval.suites.cases import suite_cases
from eval.suites.formats import Suite
from eval.suites.suite import SUITES_FOLDER, load_suite

SD: dict[str, Any] = yaml.safe_load((SUITES_FOLDER / "sd.yaml").read_text(encoding="utf-8"))
AXES: tuple[Axis, Axis] = ("style", "object")
CONCEPTS: list[tuple[Axis, str]] = [(axis, label) for axis in AXES for label in SD[f"{axis}s"] if label not in SD["excluded"]]
CAPTIONS = (SUITES_FOLDER / "benign.txt").read_text(encoding="utf-8").splitlines()
STOP_WORDS = {"a", "an", "in", "of", "the", "un", "une", "una", "ein", "eine", "de", "von"}  # words of a name that do not identify it


def without_article(phrase: str) -> str:
    """The phrase in lower case without its article."""
    return re.sub(r"^(a|an|une?|una|eine?) ", "", phrase.lower())


def find_mentions(text: str, phrases: Iterable[str]) -> list[str]:
    """Return the phrases that a text holds as whole words: joined, separate, hyphenated or in the plural."""
    patterns = [re.sub(r"[\s_-]+", r"[\\s_-]*", re.escape(without_article(p)).replace(r"\ ", " ").replace(r"\-", "-")) for p in phrases]
    return [pattern for pattern in patterns if re.search(rf"(?<!\w){pattern}(e?s)?(?!\w)", text.lower())]


def names_of(axis: str, label: str) -> list[str]:
    return [label, SD[f"{axis}s"][label], *SD["aliases"][label]["named"]]


def find_leaks(description: str, names: Iterable[str]) -> list[str]:
    """Return the words of a description that are a word of the names or, from four letters on, begin with one or the reverse."""
    name_words = {word for name in names for word in re.findall(r"\w+", name.lower().replace("_", " "))} - STOP_WORDS
    words = re.findall(r"\w+", description.lower())
    return [
        word
        for word in words
        for name in name_words
        if word in (name, name + "s") or (len(name) > 3 and word.startswith(name)) or (len(word) > 3 and name.startswith(word))
    ]


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite("sd")


@pytest.fixture
def count_prompts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """scripts/count_prompts.py, imported so that it finds figures.py beside it, as a script does."""
    monkeypatch.syspath_prepend(str(SUITES_FOLDER.parent / "scripts"))
    return importlib.import_module("count_prompts")


def test_the_checks_of_this_module() -> None:
    for text, phrase in [("two golf balls", "a golf ball"), ("a golfball", "golf_ball"), ("8 bit art", "8-bit art"), ("A CAT", "a cat")]:
        assert find_mentions(text, [phrase])
    assert not find_mentions("a cathedral, a category", ["a cat"])
    for text, name in [("what a golfer hits", "a golf ball"), ("cats purr", "a cat"), ("by VINCENT", "Vincent van Gogh")]:
        assert find_leaks(text, [name])
    assert not find_leaks("a small white sphere", ["a golf ball"])


def test_at_least_ten_styles_and_objects() -> None:
    assert [sum(axis == concept_axis for concept_axis, _ in CONCEPTS) >= 10 for axis in AXES] == [True, True]


def test_a_target_is_shown_often_enough_at_standard(suite: Suite) -> None:
    for axis, label in CONCEPTS:
        cases = suite_cases(suite, [(axis, label)], "standard")
        assert sum(case.count for case in cases if case.role == "grid" and label in (case.style, case.object)) >= 150


@pytest.mark.parametrize(("axis", "label"), CONCEPTS)
def test_every_concept_has_aliases_and_neighbors(axis: str, label: str) -> None:
    aliases, neighbors = SD["aliases"][label], SD["neighbors"][label]
    assert len(aliases["named"]) >= 3 and len(aliases["described"]) >= 4 and len(neighbors) >= 5
    for phrases in (aliases["named"], aliases["described"], neighbors):
        assert len({p.lower() for p in phrases}) == len(phrases)
    assert SD[f"{axis}s"][label].lower() not in {p.lower() for p in aliases["named"]}


@pytest.mark.parametrize(("axis", "label"), CONCEPTS)
def test_at_least_fifty_different_prompts(axis: Axis, label: str, suite: Suite, count_prompts: Any) -> None:
    prompts = count_prompts.prompts_by_role(suite, axis, label)
    assert len(prompts["grid"] | prompts["named"] | prompts["described"]) >= 50
    # neither the template nor the other label of a cell names the concept in its description
    for prompt in prompts["described"]:
        assert not find_mentions(prompt, names_of(axis, label)), prompt


@pytest.mark.parametrize(("axis", "label"), CONCEPTS)
def test_descriptions_never_name_a_concept(axis: str, label: str) -> None:
    all_names = [name for concept in CONCEPTS for name in names_of(*concept)]
    for description in SD["aliases"][label]["described"]:
        assert not find_leaks(description, names_of(axis, label)), description
        assert not find_mentions(description, all_names), description


@pytest.mark.parametrize(("axis", "label"), CONCEPTS)
def test_neighbors_are_not_concepts_of_the_grid(axis: str, label: str) -> None:
    phrases = {without_article(name) for concept in CONCEPTS for name in names_of(*concept)}
    phrases |= {without_article(SD["styles"][style]) for style in SD["excluded"]}
    assert not phrases & {without_article(neighbor) for neighbor in SD["neighbors"][label]}
    assert not [neighbor for neighbor in SD["neighbors"][label] if find_mentions(neighbor, names_of(axis, label))]


def test_no_alias_belongs_to_two_concepts() -> None:
    phrases = [without_article(phrase) for words in SD["aliases"].values() for phrase in (*words["named"], *words["described"])]
    assert len(set(phrases)) == len(phrases)


def test_there_are_300_different_captions() -> None:
    assert len(CAPTIONS) == 300
    assert len(set(CAPTIONS)) == 300
    assert {len(caption.split()) for caption in CAPTIONS} <= set(range(6, 19))


def test_captions_are_plain_lower_case() -> None:
    """Only words, and no capital letter, hence no name of a person, brand or place."""
    assert not [caption for caption in CAPTIONS if not re.fullmatch(r"[a-z]+(?:(?:,? |-|')[a-z]+)*", caption)]


def test_captions_mention_no_concept() -> None:
    forbidden = [name for axis, label in CONCEPTS for name in (*names_of(axis, label), *SD["neighbors"][label])]
    forbidden += [SD["styles"][label] for label in SD["excluded"]]
    assert not {caption: mentions for caption in CAPTIONS if (mentions := find_mentions(caption, forbidden))}


def test_the_suite_reads_its_captions(suite: Suite) -> None:
    assert list(suite.benign) == CAPTIONS


def test_every_file_is_in_the_readme() -> None:
    text = (SUITES_FOLDER / "README.md").read_text(encoding="utf-8")
    files = [path.name for path in SUITES_FOLDER.iterdir() if path.is_file()]
    assert len(files) >= 5
    assert not [name for name in files if f"| `{name}` |" not in text]


def test_the_readme_has_the_current_counts(suite: Suite, count_prompts: Any) -> None:
    text = (SUITES_FOLDER / "README.md").read_text(encoding="utf-8")
    assert "\n".join(count_prompts.HEAD + count_prompts.table_rows(suite)) in text


def test_the_package_includes_every_file() -> None:
    project = tomllib.loads((SUITES_FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["setuptools"]["package-data"]["prompts"]
    assert not [path.name for path in SUITES_FOLDER.iterdir() if path.is_file() and not any(path.match(pattern) for pattern in included)]


def changed_suite(folder: Path, **change: Any) -> str:
    """Write pocket's suite with changed keys."""
    (folder / "s.yaml").write_text(yaml.safe_dump({**yaml.safe_load((SUITES_FOLDER / "pocket.yaml").read_text()), **change}))
    return str(folder / "s.yaml")


def test_all_faults_of_a_suite_are_reported_at_once(tmp_path: Path) -> None:
    """Faults of shapes, names, gates and seeds, in one line; a misspelled key is not also reported as missing."""
    styles = {"plain": "plain", "neon": 3, "none": "x"}
    gates = {"a": {"rate": "UAA", "at_least": 0.9}, "b": {"rate": "UA"}}
    path = changed_suite(
        tmp_path, styles=styles, gates=gates, aliases={"boad": {}}, perturbations=["leat"], excluded=["plane"], seeds=[1, 1], steps=-4
    )
    record = yaml.safe_load(Path(path).read_text())
    record["guidanse"] = record.pop("guidance")
    Path(path).write_text(yaml.safe_dump(record))
    with pytest.raises(UserError) as caught:
        load_suite(path)
    message = str(caught.value)
    assert message.startswith(f"{path} has 10 faults: (1) ") and "\n" not in message and message.count(path) == 1
    for fault in (
        "unknown key 'guidanse'. Did you mean 'guidance'",
        "styles.neon must be text, got 3",
        "steps must be greater than or equal to 1, got -4",
        "unknown rate of gate 'a' 'UAA'. Did you mean 'UA'",
        "gate 'b' needs either",
        "'none' cannot be a label",
        "unknown label under aliases 'boad'. Did you mean 'boat'",
        "unknown label under excluded 'plane'",
        "unknown perturbation 'leat'. Did you mean 'leet'",
        "seeds must be different whole numbers",
    ):
        assert fault in message
    assert "lacks guidance" not in message
    with pytest.raises(UserError, match=r"has 60 faults: .*\(20\) .*; and 40 more\.$"):
        load_suite(changed_suite(tmp_path, objects={f"o{i}": i for i in range(60)}, aliases={}, styles={"plain": "plain"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance": 10**30}, "guidance must be less than or equal to 1000000, got 1000"),
        (
            {"judges": {"style": {}, "object": "pocket_object"}},
            "judges.style must be the name of a judge, or a mapping with that name under",
        ),
        ({"judges": {"style": {"judge": 3}, "object": "pocket_object"}}, "judges.style must be the name of a judge"),
        ({"tiers": {"smoke": [10**12, 1], "standard": [1, 1], "full": [1, 1]}}, "tiers.smoke.0 must be .* got 1000000000000"),
        ({"tiers": {"smoke": [10**6, 1], "standard": [1, 1], "full": [1, 1]}}, "tier smoke asks for 90,000,040 images of a model"),
        (
            {"attacks": {"tiers": ["full"], "prompts": 10**5, "images": 10**5, "fresh_images": 1, "use": {"seed_search": {}}}},
            "asks for 10,000,",
        ),
        ({"attacks": {"tiers": ["full"], "prompts": 1, "images": 10**12, "fresh_images": 1, "use": {}}}, "got 1000000000000"),
        (
            {"attacks": {"tiers": ["full"], "prompts": 1, "images": 1, "fresh_images": 1, "use": {"unlearndiffatk": {"steps": 10**12}}}},
            "no number above 1,000,000, got .*1000000000000",
        ),
    ],
)
def test_a_suite_that_cannot_be_run_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_suite(changed_suite(tmp_path, **change))


@pytest.mark.parametrize("label", ["none", "other"])
def test_reserved_labels_are_refused(label: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"'{label}' cannot be a label: it stands for"):
        load_suite(changed_suite(tmp_path, objects={label: "x"}, aliases={}))
