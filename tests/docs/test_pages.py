"""The pages: links resolve, lines and sentences are short, each begins with what it is about, and paths named in code exist."""

import re
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import DOCS, GENERATED, PAGES, ROOT, TEXTS, anchors_of, links_of, paragraphs, prose_lines

MAX_LINE, MAX_SENTENCE, MAX_SUMMARY = 100, 200, 3  # characters, characters, lines
EXAMPLE_PATHS = {"erasure/methods/early_negative.py"}  # of a file that the reader writes
CODE_FOLDERS = ("app", "erasure", "eval", "prompts", "scripts", "tests")
SENTENCE_END = re.compile(r"(?<=[.!?])[*_)\"]*\s+")
IDS = {"ids": lambda page: str(page.relative_to(ROOT))}


@pytest.mark.parametrize("page", [*TEXTS, *PAGES], **IDS)
def test_links_and_images_resolve(page: Path) -> None:
    for target in links_of(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors_of(file.read_text(encoding="utf-8")), f"{page}: {target}"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], **IDS)
def test_lines_and_sentences_are_short(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page not in GENERATED:
        assert [line for line in prose_lines(text) if len(line.text) > MAX_LINE] == []
        assert [part for block in paragraphs(text) for part in SENTENCE_END.split(block) if len(part) > MAX_SENTENCE] == []


@pytest.mark.parametrize("page", PAGES, **IDS)
def test_a_page_begins_with_a_summary(page: Path) -> None:
    text = re.sub(r"^---.*?^---\n", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE).strip()
    heading, _, rest = text.partition("\n\n")
    assert heading.startswith("# ")
    summary = re.sub(r"^<!--.*?-->\n\n", "", rest).split("\n\n")[0].split("\n")
    assert len(summary) <= MAX_SUMMARY, summary
    assert re.match(r"[A-Z`]", summary[0])


def test_the_site_has_every_page() -> None:
    def files_of(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [file for part in (entry.values() if isinstance(entry, dict) else entry) for file in files_of(part)]  # type: ignore[attr-defined]

    assert sorted(files_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])) == [str(page.relative_to(DOCS)) for page in PAGES]


def test_pages_named_in_code_exist() -> None:
    files = [path for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml", ".md", ".j2")]
    names = {name for path in [*files, ROOT / "run_space.py"] for name in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8"))}
    assert names
    assert [name for name in sorted(names) if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", [*TEXTS, *PAGES], **IDS)
def test_paths_of_the_project_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # it names what was
    paths = re.findall(
        r"(?<![\w/.-])((?:app|erasure|eval|prompts|scripts|tests)/[\w./-]*[\w/])(?![\w<*{])", page.read_text(encoding="utf-8")
    )
    assert [path for path in paths if not (ROOT / path).exists() and path not in EXAMPLE_PATHS] == []


def test_scripts_write_into_pages_that_have_their_marks() -> None:
    filled = 0
    for script in (ROOT / "scripts").glob("*.py"):
        source = script.read_text(encoding="utf-8")
        pages = {ROOT / page for page in re.findall(r'Path\("([\w/-]+\.md)"\)', source)}
        pages |= {ROOT / "prompts" / "README.md"} if '"prompts" / "README.md"' in source else set()
        pages |= {DOCS / folder / page for folder, page in re.findall(r'docs / "(\w+)" / "([\w-]+\.md)"', source)}
        marks = {mark for page in pages for mark in re.findall(r"^<!-- ([\w -]+) -->$", page.read_text(encoding="utf-8"), re.MULTILINE)}
        names = re.findall(r'fill_(?:section|table_rows)\(\s*[^,]+,\s*"([\w -]+)"', source)
        assert set(names) <= marks, script.name
        filled += len(names)
    assert filled > 15


@pytest.mark.parametrize("page", PAGES, **IDS)
def test_marks_are_paired(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    opened, closed = re.findall(r"^<!-- ([\w -]+) -->$", text, re.MULTILINE), re.findall(r"^<!-- /([\w -]+) -->$", text, re.MULTILINE)
    assert opened == closed
    assert len(set(opened)) == len(opened)
