"""A library that another one imports at once is loaded only when it is used."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from erasure.lazy_library import import_lazily


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `slow_library` that leaves a file behind when it is loaded."""
    folder = tmp_path / "slow_library"
    folder.mkdir()
    (folder / "__init__.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'loaded')!r}).touch()\nvalue = 7\n")
    (folder / "part.py").write_text("from slow_library import value\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "loaded"
    for name in [name for name in sys.modules if name.startswith("slow_library")]:
        del sys.modules[name]


def test_importing_loads_nothing_and_using_loads_once(library: Path) -> None:
    import_lazily("slow_library")
    slow_library = import_module("slow_library")
    assert not library.exists()
    assert slow_library.value == 7
    assert library.exists()
    assert sys.modules["slow_library"] is not slow_library and sys.modules["slow_library"].value == 7
    with pytest.raises(AttributeError, match="nothing"):
        _ = slow_library.nothing


def test_a_part_of_the_library_loads_it(library: Path) -> None:
    import_lazily("slow_library")
    assert import_module("slow_library.part").value == 7
    assert library.exists()


def test_a_library_that_is_missing_stays_missing() -> None:
    import_lazily("no_such_library")
    assert "no_such_library" not in sys.modules


def test_a_model_is_loaded_without_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes")
    code = "import sys, erasure; erasure.load_model('pocket'); print('bitsandbytes.functional' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
