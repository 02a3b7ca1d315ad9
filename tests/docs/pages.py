"""The pages of the documentation, taken apart for the tests beside this file."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "prompts/README.md")]
GENERATED = {DOCS / "reference" / name for name in ("commands.md", "suites.md", "methods.md", "attacks.md", "judges.md")}
FENCE, MARK, MARK_END = re.compile(r"\s*```"), re.compile(r"<!-- [\w -]+ -->$"), re.compile(r"<!-- /[\w -]+ -->$")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")


class Line(NamedTuple):
    """A line of prose: no code, no table, no heading, nothing that a script wrote."""

    number: int
    text: str


def prose_lines(text: str) -> Iterator[Line]:
    in_fence = in_mark = in_front_matter = False
    for number, line in enumerate(text.split("\n"), 1):
        if line == "---":
            in_front_matter = not in_front_matter and number == 1
            continue
        if FENCE.match(line):
            in_fence = not in_fence
            continue
        in_mark = (in_mark or bool(MARK.match(line))) and not MARK_END.match(line)
        if not (in_fence or in_mark or in_front_matter or re.match(r"\s*\||#|    |<|!\[|:::|\s*$", line)):
            yield Line(number, line)


def paragraphs(text: str) -> Iterator[str]:
    """Yield runs of prose lines that follow each other, a list item each."""
    block: list[str] = []
    last = 0
    for number, line in prose_lines(text):
        is_item = re.match(r"\s*(- |\d+\. )", line)
        if block and (number != last + 1 or is_item):
            yield " ".join(block)
            block = []
        block.append(line.strip())
        last = number
    if block:
        yield " ".join(block)


def without_code(text: str) -> str:
    """Return a text without its code blocks and spans."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "``", text)


def links_of(text: str) -> list[str]:
    """Return the targets of a page's links and images, without those to other sites."""
    return [target for target in LINK.findall(without_code(text)) if not re.match(r"https?:|mailto:", target)]


def anchors_of(text: str) -> set[str]:
    """Return the anchors of a page's headings, as Python-Markdown and GitHub make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()) for heading in headings}


def code_blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def command_lines(text: str) -> list[list[str]]:
    """Return the arguments of every `erasure` command in the code blocks of a page; `...` stands for more."""
    lines = re.findall(r"^ {4,}(?:\.venv/bin/)?erasure (.+)$", re.sub(r"\\\n\s*", " ", text), re.MULTILINE)
    return [[word for word in shlex.split(line, comments=True) if word != "..."] for line in lines]
