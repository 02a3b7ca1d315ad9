"""Write the generated pages of docs/reference: commands, suite keys, methods, attacks and judges, from the classes that define them.

    python scripts/write_reference.py

A test holds that the committed pages are what this writes.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from reference_pages.commands import commands_page
from reference_pages.plugins import attacks_page, judges_page, methods_page
from reference_pages.suites import suites_page

PAGES: dict[str, tuple[str, Callable[[], list[str]]]] = {
    "commands.md": ("Commands", commands_page),
    "suites.md": ("Suite keys", suites_page),
    "methods.md": ("Methods", methods_page),
    "attacks.md": ("Attacks", attacks_page),
    "judges.md": ("Judges", judges_page),
}
NOTE = "<!-- Written by scripts/write_reference.py; change the classes, not this page. -->"


def render_pages() -> dict[str, str]:
    """Return the text of every generated page by file name."""
    return {file: "\n".join([f"# {title}", "", NOTE, "", *render()]).rstrip("\n") + "\n" for file, (title, render) in PAGES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/reference"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for file, text in render_pages().items():
        (options.out / file).write_text(text, encoding="utf-8")
        print(options.out / file)


if __name__ == "__main__":
    main()
