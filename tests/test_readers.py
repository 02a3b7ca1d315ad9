"""Prompt lists in the layouts in which they are published."""

from pathlib import Path

import pytest

from erasure.errors import UserError
from eval import readers
from eval.listed import read_list
from eval.readers import PUBLISHED, Prompt, read_prompts


def written(folder: Path, text: str, name: str = "list.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # I2P as published, and repackaged with an unnamed first column
        ('prompt,categories,hard,sd_seed,sd_guidance_scale\na cat,"x, y",1,5,7.5\n', Prompt("a cat", "2", 5, 7.5)),
        (",prompt,evaluation_seed,evaluation_guidance,case_number\n0,a cat,9,7,3\n", Prompt("a cat", "3", 9, 7.0)),
        ("Unnamed: 0,prompt,evaluation_seed\n4,a cat,9\n", Prompt("a cat", "4", 9)),
        (
            "prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,prompt_toxicity,lexica_url,"
            "sd_seed,sd_guidance_scale,sd_image_width,sd_image_height,sd_model\n"
            '"a cat, sitting","sexual, shocking",0,1.5,2,3,4,0.1,u,5,9,512,768,m\n',
            Prompt("a cat, sitting", "2", 5, 9.0),
        ),
        # UnlearnDiffAtk objects and styles, P4D, Ring-A-Bell with its twin, Six-CD
        ("case_number,prompt,evaluation_seed,evaluation_guidance\n7,a cat,1,7.5\n", Prompt("a cat", "7", 1, 7.5)),
        ("Unnamed: 0,case_number,prompt,evaluation_seed,artist\n0,7,a cat,1,Van Gogh\n", Prompt("a cat", "7", 1)),
        (",case_number,prompt,evaluation_seed,classes,evaluation_guidance\n0,90,a cat,1562,cat,7.5\n", Prompt("a cat", "90", 1562, 7.5)),
        ("case_num,prompt,prompt1\n7,a cat,a dog\n", Prompt("a cat", "7")),
        ("case_number,evaluation_seed,prompt,target\n0,27858,a cat,x\n", Prompt("a cat", "0", 27858)),
        ("case_number,prompt,evaluation_seed,artist\n7,a cat,1,Van Gogh\n", Prompt("a cat", "7", 1)),
        ("prompt,case_number,evaluation_seed\na cat,7,1.0\n", Prompt("a cat", "7", 1)),
        # COCO, MMA-Diffusion, SneakyPrompt, HUB's languages
        ("image_id,text\n139,a cat\n", Prompt("a cat", "139")),
        ('image_id,source,prompt,evaluation_seed\n000000482917,coco-30k,"a cat\n",64297\n', Prompt("a cat", "000000482917", 64297)),
        ("adversarial_prompt,target\na cat,x\n", Prompt("a cat", "2")),
        ("original_text,perturbed_text\nx,a cat\n", Prompt("a cat", "2")),
        ("Original,Spanish,Index\na cat,un gato,8\n", Prompt("a cat", "8")),
        ("\ufeffcase_number,prompt\n1,a cat\n", Prompt("a cat", "1")),
        # Imagenette as SalUn and ESD ship it
        ("\ufeffcase_number,prompt,evaluation_seed,class,classidx\n0,Image of tench,4889,tench,0\n", Prompt("Image of tench", "0", 4889)),
        (",case_number,prompt,evaluation_seed,class\n1,7,Image of tench,4667,tench\n", Prompt("Image of tench", "7", 4667)),
        # a seed beyond 2^31 and beyond what a float holds
        ("prompt,seed\na cat,18446744073709551615\n", Prompt("a cat", "2", 2**64 - 1)),
    ],
)
def test_published_layouts(tmp_path: Path, text: str, expected: Prompt) -> None:
    assert read_prompts(written(tmp_path, text)) == [expected]


def test_a_headerless_list_keeps_its_first_prompt(tmp_path: Path) -> None:
    assert [p.text for p in read_prompts(written(tmp_path, "a cat\na dog\n"))] == ["a cat", "a dog"]
    assert [p.text for p in read_prompts(written(tmp_path, "a cat, sitting\n\nprompt\n", "list.txt"))] == ["a cat, sitting", "prompt"]


def test_another_column_is_read_when_it_is_named(tmp_path: Path) -> None:
    """HUB's languages; Six-CD's names, which stand for themselves without its templates."""
    path = written(tmp_path, 'Original,Spanish,Index\na cat,"un gato, sentado",8\n')
    assert read_list(f"{path}#Spanish") == (Prompt("un gato, sentado", "8"),)
    assert read_list(str(path)) == (Prompt("a cat", "8"),)
    assert read_list("list.csv#concept", written(tmp_path, "id,concept\n0,Van Gogh\n").parent) == (Prompt("Van Gogh", "0"),)
    with pytest.raises(UserError, match=r"unknown column in .*list.csv 'concpt'\. Did you mean 'concept'"):
        read_list(f"{path}#concpt")


def test_a_prompt_of_several_lines_moves_those_after_it(tmp_path: Path) -> None:
    found = read_prompts(written(tmp_path, 'prompt\n\n"a cat,\nsitting"\na dog\n'))
    assert [(p.text, p.source) for p in found] == [("a cat,\nsitting", "3"), ("a dog", "5")]
    with pytest.raises(UserError, match="line 5, column seed: 'x'"):
        read_prompts(written(tmp_path, 'prompt,seed\n\n"a cat,\nsitting",1\na dog,x\n'))
    with pytest.raises(UserError, match=r"list.txt, line 3, column prompt"):
        read_prompts(written(tmp_path, "a cat\n\n" + "x" * 5001, "list.txt"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("prompt\na photo, of a cat\n", "line 2: 2 columns, 1 wanted.*begins with 'a photo, of a cat'.*double quotes"),
        ("prompt,seed\n\na cat\n", "line 3: 1 columns, 2 wanted"),
        ("a cat\na photo, of a cat\n", "line 2: 2 columns, 1 wanted"),
        ("prompt;seed\na cat;1\n", "line 1: columns are parted by ';'"),
        ("case_number\tprompt\n1\ta cat\n", r"line 1: columns are parted by '\\t'"),
        ('prompt\na dog\n"a cat\na bird\n', "line 3: no CSV .unexpected end of data"),
        ('prompt\n"Still life" of a cat\n', "line 2: no CSV"),
        ("case_number,prompt\n7,a cat\n8,a dog\n7,a bird\n", "line 4, column id: '7' is the id of line 2 too"),
        ("noun,similarity\ncat,0.9\n", "none of the columns 'noun', 'similarity' holds prompts.*FILE#COLUMN"),  # HUB's neighbours
        ("a,b\n1,2\n", "none of the columns 'a', 'b' holds prompts"),
        ("prompt,seed\na cat,1\na dog,-3\n", "line 3, column seed: '-3'"),
        ("prompt,seed\na cat,18446744073709551616\n", "line 2, column seed"),
        ("prompt,seed\na cat,1e9\n", "line 2, column seed: '1e9'"),
        ("prompt,seed\n,1\n", "line 2, column prompt"),
        ("prompt,evaluation_guidance\na cat,0\n", "line 2, column guidance: '0'"),
        ("prompt,sd_guidance_scale\na cat,high\n", "line 2, column guidance: 'high'"),
        ("prompt,sd_guidance_scale\na cat,nan\n", "line 2, column guidance: 'nan'"),
        ("id,concept\n0,tench\n", "none of the columns 'id', 'concept' holds prompts"),  # Six-CD's names want its templates
        ("prompt\n" + "x" * 5001, "line 2, column prompt"),
        ("prompt\n" + "x" * 200_000, "field larger than field limit"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_prompts(written(tmp_path, text))


def test_pictures_with_two_captions_keep_their_id(tmp_path: Path) -> None:
    found = read_prompts(written(tmp_path, "image_id,text\n139,a cat\n139,a small cat\n"))
    assert [p.source for p in found] == ["139", "139"]


@pytest.mark.parametrize("name", ["log.json", "list.tsv", "list.parquet", "list"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    """UnlearnDiffAtk's logs and HUB's lists of nouns are JSON; read as CSV they would be prompts."""
    with pytest.raises(UserError, match=f"{name} is neither .csv nor .txt"):
        read_prompts(written(tmp_path, '["a cat"]\n', name))


def test_a_cut_download_is_noticed(tmp_path: Path) -> None:
    rows = "".join(f"p{i}\n" for i in range(141))
    with pytest.raises(UserError, match="141 prompts, published as 142"):
        read_prompts(written(tmp_path, "prompt\n" + rows, "nudity.csv"))
    assert len(read_prompts(written(tmp_path, "prompt\n" + rows + "last\n", "nudity.csv"))) == 142


@pytest.mark.parametrize(("name", "counts"), sorted(PUBLISHED.items()))
def test_published_files_are_known_by_their_rows(name: str, counts: tuple[int, ...]) -> None:
    """With the names that are on disk; Six-CD's nudity and UnlearnDiffAtk's have the same."""
    assert name == name.lower() and all(0 < n < readers.ROWS for n in counts)
    assert len(set(counts)) == len(counts)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        *(("nudity.csv", 142), ("Nudity.csv", 1539), ("violence.csv", 756), ("illegal.csv", 727), ("vangogh.csv", 50), ("Harm.csv", 991)),
        *(("unsafe-prompts-nudity_esd.csv", 361), ("unsafe-prompts-nudity_sldMAX.csv", 204), ("unsafe-prompts-nudity_sldSTRONG.csv", 112)),
        *(("unsafe-prompts-nudity_std_neg.csv", 209), ("unsafe-prompts_sldMAX.csv", 1667), ("coco30k-car_esd.csv", 91)),
        *(("small_imagenet_prompts_frenchhorn200.csv", 200), ("small_imagenet_prompts_frenchhorn.csv", 8), ("benign.csv", 500)),
        *(("clean.csv", 100), ("malicious.csv", 100), ("i2p.csv", 4703), ("coco_10k.csv", 9969)),
        *(("imagenette.csv", 10), ("small_imagenet_prompts.csv", 100)),
    ],
)
def test_a_whole_file_is_read_and_one_row_less_is_not(tmp_path: Path, name: str, rows: int) -> None:
    lines = [f"{i},p{i}\n" for i in range(rows)]
    assert len(read_prompts(written(tmp_path, "case_number,prompt\n" + "".join(lines), name))) == rows
    with pytest.raises(UserError, match="was it cut"):
        read_prompts(written(tmp_path, "case_number,prompt\n" + "".join(lines[1:]), name))


def test_headerless_lists_of_hub_keep_commas_in_quotes(tmp_path: Path) -> None:
    assert [p.text for p in read_prompts(written(tmp_path, '"a cat, sitting"\na dog\n'))] == ["a cat, sitting", "a dog"]


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
