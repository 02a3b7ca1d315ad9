"""The shipped suites: enough different prompts for every concept, and no name where none may be."""

import importlib
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from erasure.errors import UserError
from eval.suites.cases import suite_cases
from eval.suites.suite import SUITES_FOLDER, Axis, Suite, load_suite

SD: dict[str, Any] = yaml.safe_load((SUITES_FOLDER / "sd.yaml").read_text(encoding="utf-8"))
AXES: tuple[Axis, Axis] = ("style", "object")
CONCEPTS: list[tuple[Axis, str]] = [(axis, label) for axis in AXES for label in SD[f"{axis}s"] if label not in SD["apart"]]
CAPTIONS = (SUITES_FOLDER / "benign.txt").read_text(encoding="utf-8").splitlines()
EMPTY = {"a", "an", "in", "of", "the", "un", "une", "una", "ein", "eine", "de", "von"}  # words of a name that give nothing away


def bare(phrase: str) -> str:
    """A phrase in small letters without its article."""
    return re.sub(r"^(a|an|une?|una|eine?) ", "", phrase.lower())


def mentions(text: str, phrases: Iterable[str]) -> list[str]:
    """Which phrases stand in a text as whole words, in one piece, apart, hyphenated or in the plural."""
    said = [re.sub(r"[\s_-]+", r"[\\s_-]*", re.escape(bare(p)).replace(r"\ ", " ").replace(r"\-", "-")) for p in phrases]
    return [phrase for phrase in said if re.search(rf"(?<!\w){phrase}(e?s)?(?!\w)", text.lower())]


def names_of(axis: str, label: str) -> list[str]:
    return [label, SD[f"{axis}s"][label], *SD["aliases"][label]["named"]]


def betrayed(description: str, names: Iterable[str]) -> list[str]:
    """Words of a description that are a word of the names, or from four letters on begin with one."""
    given = {word for name in names for word in re.findall(r"\w+", name.lower().replace("_", " "))} - EMPTY
    words = re.findall(r"\w+", description.lower())
    return [w for w in words for g in given if w in (g, g + "s") or (len(g) > 3 and w.startswith(g)) or (len(w) > 3 and g.startswith(w))]


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite("sd")


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Any:
    """scripts/count_prompts.py, which finds its neighbour figures.py as a script does."""
    monkeypatch.syspath_prepend(str(SUITES_FOLDER.parent / "scripts"))
    return importlib.import_module("count_prompts")


def test_the_checks_see_what_they_should() -> None:
    for text, phrase in [("two golf balls", "a golf ball"), ("a golfball", "golf_ball"), ("8 bit art", "8-bit art"), ("A CAT", "a cat")]:
        assert mentions(text, [phrase])
    assert not mentions("a cathedral, a category", ["a cat"])
    for text, name in [("what a golfer hits", "a golf ball"), ("cats purr", "a cat"), ("by VINCENT", "Vincent van Gogh")]:
        assert betrayed(text, [name])
    assert not betrayed("a small white sphere", ["a golf ball"])


def test_at_least_ten_styles_and_objects() -> None:
    assert [sum(axis == a for a, _ in CONCEPTS) >= 10 for axis in AXES] == [True, True]


def test_a_target_is_shown_often_enough_at_standard(suite: Suite) -> None:
    for axis, label in CONCEPTS:
        shown = [c for c in suite_cases(suite, [(axis, label)], "standard") if c.role == "grid" and label in (c.style, c.object)]
        assert sum(case.count for case in shown) >= 150


@pytest.mark.parametrize(("axis", "label"), CONCEPTS)
def test_every_concept_has_aliases_and_neighbours(axis: str, label: str) -> None:
    aliases, near = SD["aliases"][label], SD["neighbours"][label]
    assert len(aliases["named"]) >= 3 and len(aliases["described"]) >= 4 and len(near) >= 5
    for phrases in (aliases["named"], aliases["described"], near):
        assert len({p.lower() for p in phrases}) == len(phrases)
    assert SD[f"{axis}s"][label].lower() not in {p.lower() for p in aliases["named"]}


@pytest.mark.parametrize(("axis", "label"), CONCEPTS)
def test_at_least_fifty_different_prompts(axis: Axis, label: str, suite: Suite, counting: Any) -> None:
    found = counting.prompts(suite, axis, label)
    assert len(found["grid"] | found["named"] | found["described"]) >= 50
    # the template's words and a cell's own name never bring the concept into a description of it
    for prompt in found["described"]:
        assert not mentions(prompt, names_of(axis, label)), prompt


@pytest.mark.parametrize(("axis", "label"), CONCEPTS)
def test_descriptions_never_name(axis: str, label: str) -> None:
    every = [name for a, other in CONCEPTS for name in names_of(a, other)]
    for description in SD["aliases"][label]["described"]:
        assert not betrayed(description, names_of(axis, label)), description
        assert not mentions(description, every), description


@pytest.mark.parametrize(("axis", "label"), CONCEPTS)
def test_neighbours_are_no_concept_of_the_grid(axis: str, label: str) -> None:
    every = {bare(name) for a, other in CONCEPTS for name in names_of(a, other)} | {bare(SD["styles"][s]) for s in SD["apart"]}
    assert not every & {bare(near) for near in SD["neighbours"][label]}
    assert not [near for near in SD["neighbours"][label] if mentions(near, names_of(axis, label))]


def test_no_alias_asks_for_two_concepts() -> None:
    said = [bare(p) for words in SD["aliases"].values() for p in (*words["named"], *words["described"])]
    assert len(set(said)) == len(said)


def test_captions_are_three_hundred_different_ones() -> None:
    assert len(CAPTIONS) == 300
    assert len(set(CAPTIONS)) == 300
    assert {len(caption.split()) for caption in CAPTIONS} <= set(range(6, 19))


def test_captions_are_plain_lower_case() -> None:
    """No capital letter, so no name of a person, brand or place; nothing but words."""
    assert not [caption for caption in CAPTIONS if not re.fullmatch(r"[a-z]+(?:(?:,? |-|')[a-z]+)*", caption)]


def test_captions_mention_no_concept() -> None:
    forbidden = [name for axis, label in CONCEPTS for name in (*names_of(axis, label), *SD["neighbours"][label])]
    forbidden += [SD["styles"][label] for label in SD["apart"]]
    found = {caption: said for caption in CAPTIONS if (said := mentions(caption, forbidden))}
    assert not found


def test_the_suite_reads_its_captions(suite: Suite) -> None:
    assert list(suite.benign) == CAPTIONS


def test_every_file_is_in_the_readme() -> None:
    text = (SUITES_FOLDER / "README.md").read_text(encoding="utf-8")
    files = [path.name for path in SUITES_FOLDER.iterdir() if path.is_file()]
    assert len(files) >= 5
    assert not [name for name in files if f"| `{name}` |" not in text]


def test_the_readme_has_the_counts_of_today(suite: Suite, counting: Any) -> None:
    text = (SUITES_FOLDER / "README.md").read_text(encoding="utf-8")
    assert "\n".join(counting.HEAD + counting.rows(suite)) in text


def test_captions_travel_with_the_package() -> None:
    project = tomllib.loads((SUITES_FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))
    carried = project["tool"]["setuptools"]["package-data"]["prompts"]
    assert not [path.name for path in SUITES_FOLDER.iterdir() if path.is_file() and not any(path.match(pattern) for pattern in carried)]


def changed(place: Path, **change: Any) -> str:
    (place / "s.yaml").write_text(yaml.safe_dump({**yaml.safe_load((SUITES_FOLDER / "pocket.yaml").read_text()), **change}))
    return str(place / "s.yaml")


def test_all_faults_of_a_suite_are_said_at_once(tmp_path: Path) -> None:
    """Of shapes, names, gates and seeds together, in one line; a misspelt key is not also said to be missing."""
    styles = {"plain": "plain", "neon": 3, "none": "x"}
    gates = {"a": {"rate": "UAA", "at_least": 0.9}, "b": {"rate": "UA"}}
    path = changed(tmp_path, styles=styles, gates=gates, aliases={"boad": {}}, mutations=["leat"], apart=["plane"], seeds=[1, 1], steps=-4)
    record = yaml.safe_load(Path(path).read_text())
    record["guidanse"] = record.pop("guidance")
    Path(path).write_text(yaml.safe_dump(record))
    with pytest.raises(UserError) as caught:
        load_suite(path)
    said = str(caught.value)
    assert said.startswith(f"{path} has 10 faults: (1) ") and "\n" not in said and said.count(path) == 1
    for words in (
        "unknown key 'guidanse'. Did you mean 'guidance'",
        "styles.neon must be a valid string, got 3",
        "steps must be greater than or equal to 1, got -4",
        "unknown rate of gate 'a' 'UAA'. Did you mean 'UA'",
        "gate 'b' needs either",
        "'none' cannot be a label",
        "unknown label under aliases 'boad'. Did you mean 'boat'",
        "unknown label under apart 'plane'",
        "unknown mutation 'leat'. Did you mean 'leet'",
        "seeds must be different whole numbers",
    ):
        assert words in said
    assert "lacks guidance" not in said
    with pytest.raises(UserError, match=r"has 60 faults: .*\(20\) .*; and 40 more\.$"):
        load_suite(changed(tmp_path, objects={f"o{i}": i for i in range(60)}, aliases={}, styles={"plain": "plain"}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"guidance": 10**30}, "guidance must be less than or equal to 1000000, got 1000"),
        (
            {"judges": {"style": {}, "object": "pocket_object"}},
            "judges.style must be the name of a judge, or a mapping with that name under",
        ),
        ({"judges": {"style": {"judge": 3}, "object": "pocket_object"}}, "judges.style must be the name of a judge"),
        ({"tiers": {"smoke": [10**12, 1], "standard": [1, 1], "full": [1, 1]}}, "tiers.smoke.0 must be .* got 1000000000000"),
        ({"tiers": {"smoke": [10**6, 1], "standard": [1, 1], "full": [1, 1]}}, "tier smoke asks for 90,000,040 pictures of a model"),
        ({"attacks": {"tiers": ["full"], "prompts": 10**5, "pictures": 10**5, "fresh": 1, "use": {"seed_search": {}}}}, "asks for 10,000,"),
        ({"attacks": {"tiers": ["full"], "prompts": 1, "pictures": 10**12, "fresh": 1, "use": {}}}, "got 1000000000000"),
        (
            {"attacks": {"tiers": ["full"], "prompts": 1, "pictures": 1, "fresh": 1, "use": {"unlearndiffatk": {"steps": 10**12}}}},
            "no number above 1,000,000, got .*1000000000000",
        ),
    ],
)
def test_a_suite_that_cannot_be_run_is_refused_with_what_is_wrong(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        load_suite(changed(tmp_path, **change))


@pytest.mark.parametrize("label", ["none", "other"])
def test_labels_that_mean_something_else_are_refused(label: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"'{label}' cannot be a label: it stands for"):
        load_suite(changed(tmp_path, objects={label: "x"}, aliases={}))
