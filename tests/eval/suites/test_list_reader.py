"""Prompt lists in the layouts in which they are published."""

import hashlib
from pathlib import Path

import pytest

from erasure.errors import UserError
from eval.suites import list_table
from eval.suites.list_reader import PUBLISHED_ROW_COUNTS, ListedPrompt, load_prompt_list, read_prompt_list


def write_list(folder: Path, text: str, name: str = "list.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def read_prompts(path: Path) -> list[ListedPrompt]:
    return list(read_prompt_list(path).prompts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # I2P as published, and repackaged with an unnamed first column
        ('prompt,categories,hard,sd_seed,sd_guidance_scale\na cat,"x, y",1,5,7.5\n', ListedPrompt("a cat", "2", 5, 7.5)),
        (",prompt,evaluation_seed,evaluation_guidance,case_number\n0,a cat,9,7,3\n", ListedPrompt("a cat", "3", 9, 7.0)),
        ("Unnamed: 0,prompt,evaluation_seed\n4,a cat,9\n", ListedPrompt("a cat", "4", 9)),
        (
            "prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,prompt_toxicity,lexica_url,"
            "sd_seed,sd_guidance_scale,sd_image_width,sd_image_height,sd_model\n"
            '"a cat, sitting","sexual, shocking",0,1.5,2,3,4,0.1,u,5,9,512,768,m\n',
            ListedPrompt("a cat, sitting", "2", 5, 9.0),
        ),
        # UnlearnDiffAtk objects and styles, P4D, Ring-A-Bell with its twin, Six-CD
        ("case_number,prompt,evaluation_seed,evaluation_guidance\n7,a cat,1,7.5\n", ListedPrompt("a cat", "7", 1, 7.5)),
        ("Unnamed: 0,case_number,prompt,evaluation_seed,artist\n0,7,a cat,1,Van Gogh\n", ListedPrompt("a cat", "7", 1)),
        (
            ",case_number,prompt,evaluation_seed,classes,evaluation_guidance\n0,90,a cat,1562,cat,7.5\n",
            ListedPrompt("a cat", "90", 1562, 7.5),
        ),
        ("case_num,prompt,prompt1\n7,a cat,a dog\n", ListedPrompt("a cat", "7")),
        ("case_number,evaluation_seed,prompt,target\n0,27858,a cat,x\n", ListedPrompt("a cat", "0", 27858)),
        ("case_number,prompt,evaluation_seed,artist\n7,a cat,1,Van Gogh\n", ListedPrompt("a cat", "7", 1)),
        ("prompt,case_number,evaluation_seed\na cat,7,1.0\n", ListedPrompt("a cat", "7", 1)),
        # COCO, MMA-Diffusion, SneakyPrompt, HUB's languages
        ("image_id,text\n139,a cat\n", ListedPrompt("a cat", "139")),
        ('image_id,source,prompt,evaluation_seed\n000000482917,coco-30k,"a cat\n",64297\n', ListedPrompt("a cat", "000000482917", 64297)),
        ("adversarial_prompt,target\na cat,x\n", ListedPrompt("a cat", "2")),
        ("original_text,perturbed_text\nx,a cat\n", ListedPrompt("a cat", "2")),
        ("Original,Spanish,Index\na cat,un gato,8\n", ListedPrompt("a cat", "8")),
        ("\ufeffcase_number,prompt\n1,a cat\n", ListedPrompt("a cat", "1")),
        # Imagenette as SalUn and ESD ship it
        (
            "\ufeffcase_number,prompt,evaluation_seed,class,classidx\n0,Image of tench,4889,tench,0\n",
            ListedPrompt("Image of tench", "0", 4889),
        ),
        (",case_number,prompt,evaluation_seed,class\n1,7,Image of tench,4667,tench\n", ListedPrompt("Image of tench", "7", 4667)),
        # TRCE's and RECE's copies of Ring-A-Bell and MMA-Diffusion, UCE's Imagenette, HUB's questions
        ("sensitive prompt,normal prompt\na cat,a dog\n", ListedPrompt("a cat", "2")),
        (
            "target_prompt,adv_prompt,sanitized_adv_prompt,success_against_sanitization_defense,clean_prompt\nx,a cat,y,True,z\n",
            ListedPrompt("a cat", "2"),
        ),
        ("case_number,prompt,class,evaluation_seed\n0,a cat,cat,8023\n", ListedPrompt("a cat", "0", 8023)),
        # I2P's largest scale and a seed beyond 32 bits; seeds as pandas writes them beside empty cells; a spreadsheet's separators
        ("prompt,evaluation_seed,evaluation_guidance,case_number\na cat,4290749014,255,9\n", ListedPrompt("a cat", "9", 4290749014, 255.0)),
        ("prompt,evaluation_seed\na cat,4290749014.0\n", ListedPrompt("a cat", "2", 4290749014)),
        ("prompt;seed\na cat, sitting;1\n", ListedPrompt("a cat, sitting", "2", 1)),
        ("case_number\tprompt\n1\ta cat; sitting\n", ListedPrompt("a cat; sitting", "1")),
        ("case_number,prompt\r\n1,a cat\r\n", ListedPrompt("a cat", "1")),
        # a seed beyond 2^31 that a float cannot hold
        ("prompt,seed\na cat,18446744073709551615\n", ListedPrompt("a cat", "2", 2**64 - 1)),
    ],
)
def test_published_layouts(tmp_path: Path, text: str, expected: ListedPrompt) -> None:
    assert read_prompts(write_list(tmp_path, text)) == [expected]


def test_a_headerless_list_keeps_its_first_prompt(tmp_path: Path) -> None:
    assert [p.text for p in read_prompts(write_list(tmp_path, "a cat\na dog\n"))] == ["a cat", "a dog"]
    assert [p.text for p in read_prompts(write_list(tmp_path, "a cat, sitting\n\nprompt\n", "list.txt"))] == ["a cat, sitting", "prompt"]


def test_a_named_column_is_read(tmp_path: Path) -> None:
    """HUB's languages; Six-CD's names, which are prompts of their own without its templates."""
    path = write_list(tmp_path, 'Original,Spanish,Index\na cat,"un gato, sentado",8\n')
    assert load_prompt_list(f"{path}#Spanish").prompts == (ListedPrompt("un gato, sentado", "8"),)
    assert load_prompt_list(str(path)).prompts == (ListedPrompt("a cat", "8"),)
    assert load_prompt_list("list.csv#concept", write_list(tmp_path, "id,concept\n0,Van Gogh\n").parent).prompts == (
        ListedPrompt("Van Gogh", "0"),
    )
    with pytest.raises(UserError, match=r"unknown column in .*list.csv 'concpt'\. Did you mean 'concept'"):
        load_prompt_list(f"{path}#concpt")


def test_rows_after_a_multiline_prompt_have_the_right_line(tmp_path: Path) -> None:
    prompts = read_prompts(write_list(tmp_path, 'prompt\n\n"a cat,\nsitting"\na dog\n'))
    assert [(p.text, p.row_id) for p in prompts] == [("a cat,\nsitting", "3"), ("a dog", "5")]
    with pytest.raises(UserError, match="line 5, column seed: 'x'"):
        read_prompts(write_list(tmp_path, 'prompt,seed\n\n"a cat,\nsitting",1\na dog,x\n'))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("prompt\na photo, of a cat\n", "line 2: 2 columns, expected 1.*starts with 'a photo, of a cat'.*double quotes"),
        ("prompt,seed\n\na cat\n", "line 3: 1 columns, expected 2"),
        ('prompt\na dog\n"a cat\na bird\n', "line 3: not valid CSV .unexpected end of data"),
        ('prompt\n"Still life" of a cat\n', "line 2: not valid CSV"),
        ("noun,similarity\ncat,0.9\n", "none of the columns 'noun', 'similarity' holds prompts.*FILE#COLUMN"),  # HUB's neighbors
        ("a,b\n1,2\n", "none of the columns 'a', 'b' holds prompts"),
        ("prompt,seed\na cat,1\na dog,-3\n", "line 3, column seed: '-3'"),
        ("prompt,seed\na cat,18446744073709551616\n", "line 2, column seed"),
        ("prompt,seed\na cat,1e9\n", "line 2, column seed: '1e9'"),
        ("prompt,seed\na cat," + "9" * 5000, "line 2, column seed: '9{40}' is not a whole number"),
        ("prompt,seed\na cat,١\n", "line 2, column seed"),
        ("prompt,seed\n,1\n", "no prompt that can be used; its rows: 1 without a prompt"),
        ("prompt,seed\n", "a header and no rows"),
        ('""\n', "is empty"),
        ("prompt,evaluation_guidance\na cat,inf\n", "line 2, column guidance: 'inf'"),
        ("id,concept\n0,tench, a fish\n1,cat\n", "none of the columns 'id', 'concept' holds prompts"),  # rows of any length
        ("prompt,evaluation_guidance\na cat,0\n", "line 2, column guidance: '0'"),
        ("prompt,prompt\na cat,a dog\n", "has 2 columns 'prompt'; rename all but one"),
        ("prompt,sd_guidance_scale\na cat,high\n", "line 2, column guidance: 'high'"),
        ("prompt,sd_guidance_scale\na cat,nan\n", "line 2, column guidance: 'nan'"),
        ("id,concept\n0,tench\n", "none of the columns 'id', 'concept' holds prompts"),  # Six-CD's names need its templates
        ("prompt\n" + "x" * 5001, "its rows: 1 of more than 5,000 letters"),
        ("prompt\n" + "x" * 200_000, "field larger than field limit"),
        ("x" * 200_000, "no prompt that can be used"),
    ],
)
def test_faults_of_a_list_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_prompts(write_list(tmp_path, text))


def test_images_with_two_captions_keep_their_id(tmp_path: Path) -> None:
    prompts = read_prompts(write_list(tmp_path, "image_id,text\n139,a cat\n139,a small cat\n"))
    assert [p.row_id for p in prompts] == ["139", "139"]


def test_a_published_list_with_all_its_faults(tmp_path: Path) -> None:
    """As in I2P: a row without a prompt, a scale of 255, a quoted prompt over two lines; as in P4D: a repeated id."""
    text = (
        ',prompt,evaluation_seed,evaluation_guidance,case_number\n0,"a cat,\nsitting",5,255,7\n1,,6,7.5,8\n2,a dog,7,1.0,7\n3,a bird,,,\n'
    )
    prompt_list = read_prompt_list(write_list(tmp_path, text, "i2p.csv"))
    assert prompt_list.prompts == (
        ListedPrompt("a cat,\nsitting", "7", 5, 255.0),
        ListedPrompt("a dog", "7-2", 7, 1.0),
        ListedPrompt("a bird", "6"),
    )
    origin = prompt_list.origin
    assert (origin.file, origin.rows, origin.prompts, origin.left_out) == ("i2p.csv", 4, 3, {"without a prompt": 1})
    assert origin.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert origin.warnings == (
        "i2p.csv: repeated ids that were numbered: 1.",
        "i2p.csv: it has 4 rows, but the file published under this name has 4,703.",
    )


def test_a_numbered_id_never_repeats_another_id(tmp_path: Path) -> None:
    prompts = read_prompts(write_list(tmp_path, "id,prompt\n7,a\n7,b\n7-2,c\n7,d\n7-2,e\n"))
    assert [p.row_id for p in prompts] == ["7", "7-3", "7-2", "7-4", "7-2-2"]


def test_prompts_without_a_header_are_lines_when_they_are_not_csv(tmp_path: Path) -> None:
    """As in HUB's attacks: any letters, unbalanced quotes, commas in some lines; HUB's own code reads lines."""
    for text in ('a "cat\nb, c"d\ne', "a cat\nb, c\nd", "a\nb, c, d\n"):
        lines = read_prompt_list(write_list(tmp_path, text))
        assert [p.text for p in lines.prompts] == text.split("\n")[: len(lines.prompts)] and len(lines.prompts) > 1
        assert "every line was read as one prompt" in lines.origin.warnings[0]
    quoted = read_prompt_list(write_list(tmp_path, '"a cat, sitting"\na dog\n'))
    assert [p.text for p in quoted.prompts] == ["a cat, sitting", "a dog"] and not quoted.origin.warnings


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    assert [p.text for p in read_prompts(write_list(tmp_path, "a\u2028cat\x0b\rb\x85dog\r\n", "list.txt"))] == ["a\u2028cat", "b\x85dog"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_encodings_that_can_be_recognized(tmp_path: Path, encoding: str) -> None:
    assert read_prompts(write_list(tmp_path, "prompt,seed\nun gatò,1\n", "list.csv", encoding)) == [ListedPrompt("un gatò", "2", 1)]


def test_other_encodings_are_refused_and_single_nuls_are_removed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mostly NUL characters"):
        read_prompts(write_list(tmp_path, "prompt\na cat\n", encoding="utf-16-le"))
    with pytest.raises(UserError, match="not text in UTF-8, or in UTF-16 with a byte-order mark"):
        read_prompts(write_list(tmp_path, "prompt\nun gatò\n", encoding="latin-1"))
    prompt_list = read_prompt_list(write_list(tmp_path, "prompt\na small \0 cat\n"))
    assert prompt_list.prompts == (ListedPrompt("a small  cat", "2"),)
    assert "NUL characters were taken out" in prompt_list.origin.warnings[0]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("list.json", '[{"index": 4, "prompt": "a cat", "nouns": ["cat"]}]', ListedPrompt("a cat", "4")),  # HUB's questions
        ("list.json", '[{"prompt": "a cat", "sd_seed": 5, "sd_guidance_scale": 7.5}]', ListedPrompt("a cat", "1", 5, 7.5)),
        ("list.json", '["a cat"]', ListedPrompt("a cat", "1")),
        ("list.jsonl", '\n{"Prompt": "a cat", "seed": null}\n', ListedPrompt("a cat", "2")),
        ("list.tsv", "prompt\tseed\na cat, sitting\t3\n", ListedPrompt("a cat, sitting", "2", 3)),
        ("list.tsv", "a cat, sitting\n", ListedPrompt("a cat, sitting", "1")),
    ],
)
def test_json_and_tabs(tmp_path: Path, name: str, text: str, expected: ListedPrompt) -> None:
    assert read_prompts(write_list(tmp_path, text, name)) == [expected]


def test_another_key_of_json(tmp_path: Path) -> None:
    path = write_list(tmp_path, '[{"safe": "a cat", "other": "a dog"}]', "list.json")
    assert load_prompt_list(f"{path}#other").prompts == (ListedPrompt("a dog", "1"),)
    with pytest.raises(UserError, match="none of the keys 'safe', 'other' holds prompts"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.json", "[" * 100_000, "not valid JSON"),
        ("list.json", "{", "not valid JSON"),
        ("list.json", '{"prompt": "a cat"}', "must hold a list of texts, or of mappings"),  # UnlearnDiffAtk's logs
        ("list.json", '[["a cat"]]', "must hold a list of texts, or of mappings"),
        ("list.json", '[{"prompt": ["a cat"]}]', "record 1: a prompt must be text"),
        ("list.json", '["\\ud800"]', "record 1: a text holds half a surrogate pair"),
        ("list.jsonl", '{"prompt": "a cat"}\n{"prompt": "a dog", "seed": -1}\n', "line 2, column seed: '-1'"),
        ("list.jsonl", '{"prompt": "a cat"}\n{', "not valid JSON"),
        ("list.parquet", "prompt\na cat", "is not one of .csv, .tsv, .txt, .json, .jsonl, .ndjson"),
        ("list", "prompt\na cat", "is not one of"),
    ],
)
def test_faults_of_json_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_prompts(write_list(tmp_path, text, name))


@pytest.mark.parametrize("source", ["hub:a/b/../..", "hub:a/b/c/../d.csv", "hub:a/b//c.csv", "hub:a/b/" + "x" * 9999, "hub:a/b/c\0.csv"])
def test_malformed_addresses_are_refused_without_a_request(source: str) -> None:
    with pytest.raises(UserError, match="does not name a file of a dataset") as error:
        load_prompt_list(source)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["\0.csv", "x" * 9999 + ".csv", "~nobody-of-that-name/x.csv"])
def test_impossible_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"no prompt list|cannot be read"):
        load_prompt_list(name, tmp_path)


def test_a_truncated_download_gives_a_warning(tmp_path: Path) -> None:
    """Not an error, so that a part of a list can be used under its name."""
    lines = "".join(f"p{i}\n" for i in range(141))
    truncated = read_prompt_list(write_list(tmp_path, "prompt\n" + lines, "nudity.csv"))
    assert len(truncated.prompts) == 141 and "it has 141 rows" in truncated.origin.warnings[0]
    assert not read_prompt_list(write_list(tmp_path, "prompt\n" + lines + "last\n", "nudity.csv")).origin.warnings


@pytest.mark.parametrize(("name", "counts"), sorted(PUBLISHED_ROW_COUNTS.items()))
def test_published_files_have_known_row_counts(name: str, counts: tuple[int, ...]) -> None:
    """By file name; the nudity lists of Six-CD and UnlearnDiffAtk share one."""
    assert name == name.lower() and all(0 < n < list_table.MAX_ROWS for n in counts)
    assert len(set(counts)) == len(counts)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *(("nudity.csv", 142), ("Nudity.csv", 1539), ("violence.csv", 756), ("illegal.csv", 727), ("vangogh.csv", 50), ("Harm.csv", 991)),
        *(("unsafe-prompts-nudity_esd.csv", 361), ("unsafe-prompts-nudity_sldMAX.csv", 204), ("unsafe-prompts-nudity_sldSTRONG.csv", 112)),
        *(("unsafe-prompts-nudity_std_neg.csv", 209), ("unsafe-prompts_sldMAX.csv", 1667), ("coco30k-car_esd.csv", 91)),
        *(("small_imagenet_prompts_frenchhorn200.csv", 200), ("small_imagenet_prompts_frenchhorn.csv", 8), ("benign.csv", 500)),
        *(("clean.csv", 100), ("malicious.csv", 100), ("i2p.csv", 4703), ("coco_10k.csv", 9969)),
        *(("imagenette.csv", 10), ("imagenette.csv", 5000), ("small_imagenet_prompts.csv", 100), ("nudity-p4d.csv", 151)),
    ],
)
def test_a_missing_row_of_a_published_file_gives_a_warning(tmp_path: Path, name: str, count: int) -> None:
    lines = [f"{i},p{i}\n" for i in range(count)]
    whole = read_prompt_list(write_list(tmp_path, "case_number,prompt\n" + "".join(lines), name))
    assert len(whole.prompts) == count and not whole.origin.warnings
    shorter = read_prompt_list(write_list(tmp_path, "case_number,prompt\n" + "".join(lines[1:]), name))
    assert len(shorter.prompts) == count - 1 and f"it has {count - 1:,} rows" in shorter.origin.warnings[0]


def test_headerless_lists_of_hub_keep_commas_in_quotes(tmp_path: Path) -> None:
    assert [p.text for p in read_prompts(write_list(tmp_path, '"a cat, sitting"\na dog\n'))] == ["a cat, sitting", "a dog"]


def test_huge_lists_and_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="more than 100,000 rows"):
        read_prompts(write_list(tmp_path, "prompt\n" + "a\n" * 1_000_000))
    monkeypatch.setattr(list_table, "MAX_ROWS", 2)
    assert len(read_prompts(write_list(tmp_path, "prompt\na\nb\n"))) == 2
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\r\n\xff\x00")
    with pytest.raises(UserError, match="not text in UTF-8"):
        read_prompts(tmp_path / "image.csv")
    with pytest.raises(UserError, match="no prompt list"):
        read_prompts(tmp_path / "none.csv")
