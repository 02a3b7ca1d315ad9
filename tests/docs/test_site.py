"""The site: its generated pages are what the classes say, it builds without a warning, and no page loads anything from elsewhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import erasure
import eval
from tests.docs.pages import DOCS, GENERATED, ROOT

LOADED = re.compile(r'<(?:script|link|img|iframe|source|video|audio)\b[^>]*?(?:src|href)="(?:https?:)?//([^"]+)"')
LOADED_BY_STYLE = re.compile(r"url\(\s*['\"]?(?:https?:)?//|@import")


def test_generated_pages_are_what_the_script_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "scripts/write_reference.py", "--out", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in GENERATED}
    for path in tmp_path.iterdir():
        committed = (DOCS / "reference" / path.name).read_text(encoding="utf-8")
        assert path.read_text(encoding="utf-8") == committed, "run python scripts/write_reference.py and commit the pages"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. The build runs in a copy, so that it leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    for name in ("docs", "erasure", "eval"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    zensical = Path(sys.executable).with_name("zensical")
    process = subprocess.run([zensical, "build", "--strict"], cwd=folder, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "No issues found" in process.stderr
    return folder / "site"


def test_every_page_is_built_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")} <= {page.relative_to(site) for page in pages}
    for page in pages:
        assert LOADED.findall(page.read_text(encoding="utf-8")) == [], page
    styles = sorted(site.rglob("*.css"))
    assert styles
    for style in styles:
        assert not LOADED_BY_STYLE.search(style.read_text(encoding="utf-8")), style


@pytest.mark.parametrize("package", [erasure, eval], ids=["erasure", "eval"])
def test_the_reference_of_the_library_is_complete(site: Path, package: ModuleType) -> None:
    text = (site / "reference" / f"{package.__name__}.html").read_text(encoding="utf-8")
    for name in package.__all__:
        assert name.startswith("__") or f'id="{package.__name__}.{name}"' in text, f"docs/reference/{package.__name__}.md lacks {name}"
    assert "Raises:" in text


def test_the_search_index_finds_what_a_reader_looks_for(site: Path) -> None:
    index = (site / "search.json").read_text(encoding="utf-8")
    for words in ("ComfyUI", "negative_guidance", "drop_at_most", "Clopper"):
        assert words in index, words
