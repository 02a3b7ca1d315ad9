"""Prompt lists in the layouts in which they are published."""

from pathlib import Path

import pytest

from erasure.errors import UserError
from eval import readers
from eval.readers import Prompt, read_prompts


def written(folder: Path, text: str, name: str = "list.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # I2P as published, and repackaged with an unnamed first column
        ('prompt,categories,hard,sd_seed,sd_guidance_scale\na cat,"x, y",1,5,7.5\n', Prompt("a cat", "2", 5)),
        (",prompt,evaluation_seed,evaluation_guidance,case_number\n0,a cat,9,7,3\n", Prompt("a cat", "3", 9)),
        ("Unnamed: 0,prompt,evaluation_seed\n4,a cat,9\n", Prompt("a cat", "4", 9)),
        # UnlearnDiffAtk objects and styles, Ring-A-Bell, Six-CD
        ("case_number,prompt,evaluation_seed,artist\n7,a cat,1,Van Gogh\n", Prompt("a cat", "7", 1)),
        ("prompt,case_number,evaluation_seed\na cat,7,1.0\n", Prompt("a cat", "7", 1)),
        # COCO, MMA-Diffusion, SneakyPrompt, HUB's languages
        ("image_id,text\n139,a cat\n", Prompt("a cat", "139")),
        ("adversarial_prompt,target\na cat,x\n", Prompt("a cat", "2")),
        ("original_text,perturbed_text\nx,a cat\n", Prompt("a cat", "2")),
        ("Original,Spanish,Index\na cat,un gato,8\n", Prompt("a cat", "8")),
        ("\ufeffcase_number,prompt\n1,a cat\n", Prompt("a cat", "1")),
        # a seed beyond 2^31 and beyond what a float holds
        ("prompt,seed\na cat,18446744073709551615\n", Prompt("a cat", "2", 2**64 - 1)),
    ],
)
def test_published_layouts(tmp_path: Path, text: str, expected: Prompt) -> None:
    assert read_prompts(written(tmp_path, text)) == [expected]


def test_a_headerless_list_keeps_its_first_prompt(tmp_path: Path) -> None:
    assert [p.text for p in read_prompts(written(tmp_path, "a cat\na dog\n"))] == ["a cat", "a dog"]
    assert [p.text for p in read_prompts(written(tmp_path, "a cat, sitting\n\nprompt\n", "list.txt"))] == ["a cat, sitting", "prompt"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n", "none of the columns 'a', 'b' holds prompts"),
        ("prompt,seed\na cat,1\na dog,-3\n", "row 3, column seed: '-3'"),
        ("prompt,seed\na cat,18446744073709551616\n", "row 2, column seed"),
        ("prompt,seed\na cat,1e9\n", "row 2, column seed: '1e9'"),
        ("prompt,seed\n,1\n", "row 2, column prompt"),
        ("prompt\n" + "x" * 5001, "row 2, column prompt"),
        ("prompt\n" + "x" * 200_000, "field larger than field limit"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_prompts(written(tmp_path, text))


def test_a_cut_download_is_noticed(tmp_path: Path) -> None:
    rows = "".join(f"p{i}\n" for i in range(141))
    with pytest.raises(UserError, match="141 prompts, published as 142"):
        read_prompts(written(tmp_path, "prompt\n" + rows, "nudity.csv"))
    assert len(read_prompts(written(tmp_path, "prompt\n" + rows + "last\n", "nudity.csv"))) == 142


def test_endless_lists_and_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="more than 100,000 rows"):
        read_prompts(written(tmp_path, "prompt\n" + "a\n" * 1_000_000))
    monkeypatch.setattr(readers, "ROWS", 2)
    assert len(read_prompts(written(tmp_path, "prompt\na\nb\n"))) == 2
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\r\n\xff\x00")
    with pytest.raises(UserError, match="no CSV in UTF-8"):
        read_prompts(tmp_path / "picture.csv")
    with pytest.raises(UserError, match="no prompt list"):
        read_prompts(tmp_path / "none.csv")
