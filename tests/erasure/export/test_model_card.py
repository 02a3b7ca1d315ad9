"""Model cards: what the hub reads, and that no concept name, path or long list breaks them."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from erasure.edits import Edit
from erasure.export.lora import LoraReport
from erasure.export.model_card import BeforeAfter, escape_markdown, is_on_hub, write_card
from erasure.families.stable_diffusion import StableDiffusion
from tests import synthetic_edits

HOSTILE = [
    "<script>alert(1)</script>",
    "a\n---\nlicense: mit\n---\n# owned",
    "--- \nbase_model: evil/evil",
    "![x](https://example.org/x.png) [click](javascript:alert(1))",
    "`rm -rf` ``` ~~~ | a | b |",
    "\"quoted\" 'quoted': {a: b} [c] # d & e > f",
    "<details><summary>x</summary><img src=x onerror=alert(1)>",
    "\u202eevil\u2028line\x07\x1b[31m",
    "name\r\n\r\n## heading",
]


class Tags(HTMLParser):
    """The tags of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.names.append(tag)


def write_and_read_card(edit: Edit, out: Path, export_format: str = "lora", **options: Any) -> str:
    out.mkdir()
    image = torch.rand(3, 16, 16)
    write_card(out, edit, [BeforeAfter(edit.info.concepts[0]["name"], seed, image, image) for seed in (0, 7)], export_format, **options)
    return (out / "README.md").read_text(encoding="utf-8")


def change_info(edit: Edit, **changes: Any) -> Edit:
    base = edit.info.base | ({"source": changes.pop("source")} if "source" in changes else {})
    return Edit(edit.tensors, replace(edit.info, base=base, **changes))


def concept_records(*names: str) -> list[dict[str, Any]]:
    return [synthetic_edits.CONCEPT | {"name": name} for name in names]


@pytest.fixture
def edit(model: StableDiffusion) -> Edit:
    return synthetic_edits.low_rank_edit(model, rank=2)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("export_format", ["lora", "edit", "folder", "text-encoder"])
def test_no_name_is_markup(name: str, export_format: str, edit: Edit, tmp_path: Path) -> None:
    plain_card = ModelCard(
        write_and_read_card(change_info(edit, concepts=concept_records("neon"), fields={"prompt": "x"}), tmp_path / "a", export_format)
    )
    text = write_and_read_card(change_info(edit, concepts=concept_records(name), fields={"prompt": name}), tmp_path / "b", export_format)
    parsed = ModelCard(text)
    assert parsed.data.to_dict() == plain_card.data.to_dict()
    assert {"license", "library_name", "pipeline_tag", "tags"} <= parsed.data.to_dict().keys()
    tags = Tags()
    tags.feed(parsed.text)
    assert [tag for tag in tags.names if not re.fullmatch(r"lora:[a-z0-9-]+:1", tag)] == []
    lines, plain_lines = parsed.text.splitlines(), plain_card.text.splitlines()
    assert len(lines) == len(plain_lines)  # no name adds a line, so none can begin a block
    assert [line[:2] for line in lines if line.startswith(("#", "|", "-", "<", "`"))] == [
        line[:2] for line in plain_lines if line.startswith(("#", "|", "-", "<", "`"))
    ]
    assert [line.replace("\\|", "").count("|") for line in lines if line.startswith("|")] == [3, 3, 3]
    assert "](" not in escape_markdown(name).replace("\\]", "") and "`" not in escape_markdown(name).replace("\\`", "")
    assert all(c.isprintable() or c == "\n" for c in text)


def test_the_base_is_named_only_where_the_hub_has_it(edit: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "sd15").mkdir(parents=True)
    rail = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    for source, expected in (
        (rail, {"base_model": rail, "base_model_relation": "adapter", "license": "creativeml-openrail-m"}),
        ("some-org/some-model", {"base_model": "some-org/some-model", "base_model_relation": "adapter", "license": "other"}),
        ("pocket", {"license": "apache-2.0"}),
        ("/home/ada/secret/sd15", {"license": "other"}),
        ("models/sd15", {"license": "other"}),
        ("./sd15", {"license": "other"}),
        ("~/sd15", {"license": "other"}),
        ("C:\\ada\\sd15", {"license": "other"}),
        ("weights/sd15.safetensors", {"license": "other"}),
    ):
        text = write_and_read_card(change_info(edit, source=source), tmp_path / f"out{abs(hash(source))}")
        data = ModelCard(text).data.to_dict()
        shared = {"library_name", "pipeline_tag", "tags", "license_name"}
        assert {key: value for key, value in data.items() if key not in shared} == expected
        assert (data.get("license_name") == "license-of-the-base-model") == (expected["license"] == "other")
        assert is_on_hub(source) == ("base_model" in expected)
        if not is_on_hub(source) and source != "pocket":
            assert source not in text and "sd15" not in text and "a local pocket model" not in text
            assert "Base: a local sd1 model" in text


def test_a_card_contains_no_path_of_this_machine(edit: Edit, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    fields = {
        "images": str(tmp_path / "private" / "faces"),
        "retain_images": "~/ada/photos",
        "list": [str(tmp_path / "one.png"), "a dog / a cat"],
        "generator": "../ada/run",
        "windows": "D:\\ada\\x",
        "prompt": "either / or",
    }
    text = write_and_read_card(change_info(edit, fields=fields, source=str(tmp_path / "private")), tmp_path / "card")
    assert str(tmp_path) not in text and "ada" not in text and "private" not in text
    for text_part in ("faces", "photos", "one.png", "a dog / a cat", "either / or", "run"):
        assert text_part in text.replace("\\", "")


def test_long_lists_are_folded(edit: Edit, tmp_path: Path) -> None:
    names = [f"artist {i}" for i in range(100)]
    text = write_and_read_card(
        change_info(edit, concepts=concept_records(*names), fields={"probe_prompts": [f"probe {i}" for i in range(40)], "lr": 0.1}),
        tmp_path / "card",
    )
    visible = text.split("<details>")[0] + "".join(part.split("</details>")[1] for part in text.split("<details>")[1:])
    assert "# 100 concepts, erased with uce" in visible and "artist 7" not in visible.replace("artist 0", "") and "probe 3" not in visible
    assert all(name in text for name in names) and text.count("<details>") == text.count("</details>") == 2
    few = write_and_read_card(change_info(edit, concepts=concept_records("a", "b")), tmp_path / "few")
    assert "# a; b, erased with uce" in few and "<details>" not in few


def test_a_card_explains_how_to_load_the_file(edit: Edit, tmp_path: Path) -> None:
    report = LoraReport(
        included=64,
        moved=80,
        rank=16,
        error=0.42,
        full_rank_error=0.02,
        notes=("kohya's merge script skips 4 layers",),
        whole="checkpoint or folder",
    )
    text = write_and_read_card(edit, tmp_path / "lora", lora=report)
    for words in ("load_lora_weights(FOLDER)", "models/loras/", "models/Lora/", "--lora-model-dir", "merge_lora.py", "<lora:van-gogh-uce-"):
        assert words in text
    assert (
        "carries 64 of 80 tensors, error 0.42 at rank 16, more than 0.2: a checkpoint or folder of the same edit holds all of it" in text
        and "Kohya's merge script skips 4" in text
    )
    other = write_and_read_card(edit, tmp_path / "diffusers", lora=report, layout="diffusers")
    assert "ComfyUI" not in other.split("This LoRA")[0] and "in silence" in other
    for export_format, words in (
        ("edit", "Edit.load(FOLDER).apply(pipe)"),
        ("folder", "StableDiffusionPipeline.from_pretrained(FOLDER)"),
        ("text-encoder", "CLIPTextModel.from_pretrained(FOLDER)"),
    ):
        text = write_and_read_card(edit, tmp_path / export_format, export_format)
        assert words in text and "checkpoint" in text
        for word in re.findall(r"\b(?:FOLDER|FILE|BASE|EDIT)\b", text):
            assert f"{word} is " in text
        assert ("adapter" if export_format == "edit" else "finetune") in write_and_read_card(
            change_info(edit, source="a/b"), tmp_path / f"{export_format}-hub", export_format
        )


@pytest.mark.parametrize(("family", "has_checkpoint"), [("sdxl", True), ("sd3", False), ("flux", False), ("flux2-klein", False)])
def test_a_card_offers_a_checkpoint_where_there_is_one(family: str, has_checkpoint: bool, edit: Edit, tmp_path: Path) -> None:
    made_elsewhere = Edit(edit.tensors, replace(edit.info, base=edit.info.base | {"family": family}))
    for export_format in ("edit", "folder", "text-encoder"):
        assert ("checkpoint" in write_and_read_card(made_elsewhere, tmp_path / export_format, export_format)) == has_checkpoint
    whole = "checkpoint or folder" if has_checkpoint else "folder"
    report = LoraReport(included=64, moved=80, rank=16, error=0.42, full_rank_error=0.02, notes=(), whole=whole)
    layout = "kohya" if family == "sdxl" else "diffusers"
    text = write_and_read_card(made_elsewhere, tmp_path / "lora", lora=report, layout=layout)
    assert f"more than 0.2: a {whole} of the same edit" in text


def test_only_markup_is_escaped() -> None:
    for plain in ("1e-05", "negative_guidance", "a (small) boat!", "-0.5", "#1 fan", "10:30", "a {} in {b}", "x + y", "rank 8."):
        assert escape_markdown(plain) == plain
    for text, escaped in (
        ("*a* _b_", "\\*a\\* \\_b\\_"),
        ("- a", "\\- a"),
        ("# a", "\\# a"),
        ("1. a", "1\\. a"),
        ("10) a", "10\\) a"),
        ("---", "\\---"),
        ("https://a.b", "https\\://a.b"),
        ("www.a.b", "www\\.a.b"),
        ("![a](b)", "!\\[a\\](b)"),
        ("a|b", "a\\|b"),
    ):
        assert escape_markdown(text) == escaped


def test_every_image_has_its_prompt_and_seed(edit: Edit, tmp_path: Path) -> None:
    text = write_and_read_card(edit, tmp_path / "card")
    name = edit.info.concepts[0]["name"]
    assert [f"(right): {name}, seed {seed}" in text for seed in (0, 7, 1)] == [True, True, False]


def test_a_card_asks_nothing_of_the_reader_that_only_the_maker_can_do(edit: Edit, tmp_path: Path) -> None:
    report = LoraReport(included=64, moved=80, rank=16, error=0.42, full_rank_error=0.02, notes=(), whole="checkpoint or folder")
    for layout in ("kohya", "diffusers"):
        text = write_and_read_card(edit, tmp_path / layout, lora=report, layout=layout)
        assert "--rank" not in text and "--format" not in text and "--layout" not in text
