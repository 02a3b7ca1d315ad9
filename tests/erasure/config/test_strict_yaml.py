"""YAML is read strictly: what plain YAML would drop or unfold in silence is refused."""

from pathlib import Path

import pytest

from erasure.config.strict_yaml import read_strict_yaml
from erasure.errors import UserError
from eval.suites.suite import SUITES_FOLDER, load_suite


def write_yaml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: {c: 1,\n  c: 2}\n", r"line 3: the key 'c' is duplicated"),
        ("- {1: a, 0x1: b}\n", r"line 1: the key 1 is duplicated"),
        ("{<<: {a: 1}, a: 2}\n", r"line 1: the key 'a' is duplicated"),
        ("a: &x [1]\nb: 2\n", "line 1: anchors and aliases"),
        ("a: 1\nb: *x\n", "line 2: anchors and aliases"),
        ("a: [1\n", "line 2: expected ',' or ']'"),
        ("? [a]\n: b\n", "line 1: found unhashable key"),
        ("a: 2024-13-45\n", "cannot be read as YAML: month must be in"),
        ("a: !!bool maybe\n", "cannot be read as YAML"),
        ("a: \x00\n", "cannot be read as YAML"),
    ],
)
def test_unusual_yaml_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        read_strict_yaml(write_yaml(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml does not exist\.$"):
        read_strict_yaml(tmp_path / "none.yaml")


def test_plain_yaml_is_read(tmp_path: Path) -> None:
    assert read_strict_yaml(write_yaml(tmp_path, "a: {b: [1, 2.5, c], d: null}\ne: {b: on}\n")) == {
        "a": {"b": [1, 2.5, "c"], "d": None},
        "e": {"b": True},
    }


def test_a_number_with_an_exponent_needs_no_point(tmp_path: Path) -> None:
    text = "[1e-3, -1E+3, 2.e4, 1.0e-3, 12, 0x1e, '1e-3', 1e, e3, 1e-3x]"
    assert read_strict_yaml(write_yaml(tmp_path, text)) == [0.001, -1000.0, 20000.0, 0.001, 12, 30, "1e-3", "1e", "e3", "1e-3x"]


def test_a_suite_cannot_lose_its_gates_to_a_second_key(tmp_path: Path) -> None:
    text = (SUITES_FOLDER / "pocket.yaml").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=rf"line {text.count(chr(10)) + 1}: the key 'gates' is duplicated"):
        load_suite(str(write_yaml(tmp_path, text + "gates: {}\n")))


def test_nested_anchors_are_refused_before_they_unfold(tmp_path: Path) -> None:
    levels = "".join(f"  l{i}: &l{i} [{', '.join([f'*l{i - 1}' if i else 'x'] * 9)}]\n" for i in range(12))
    text = (SUITES_FOLDER / "pocket.yaml").read_text(encoding="utf-8").replace("aliases:\n", "aliases:\n" + levels)
    with pytest.raises(UserError, match="anchors and aliases"):
        load_suite(str(write_yaml(tmp_path, text)))
