# Every target makes .venv when it is missing; nothing else needs installing by hand.
PYTHON ?= python3
BIN = .venv/bin
# where it is set, every process compiles torch anew, and starts in 14 s instead of 6
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo studio docs screenshots test pytest test-slow browser lint clean

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[test]' -c constraints.txt
	touch $@

demo: .venv/.ready
	$(BIN)/erasure demo

studio: .venv/.ready
	$(BIN)/erasure studio

# the site, in site/: its reference pages are written first; nothing but Python packages is downloaded
docs: .venv/.ready
	$(BIN)/python scripts/write_reference.py
	$(BIN)/zensical build --strict --clean

# system packages, for the browser tests alone; everything else runs without
browser:
	command -v chromium || (apt-get update -qq && apt-get install -y -qq chromium)

# the linters run meanwhile; tests have two workers of one thread each, since torch's threads gain little on their tiny models
test: .venv/.ready
	$(MAKE) --no-print-directory --jobs=2 lint pytest

pytest: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# the README's images of the studio, taken by the browser tests
screenshots: .venv/.ready
	ERASURE_SCREENSHOTS=docs/images $(BIN)/pytest tests/app/web/browser/test_page.py -k "not every_tab"

test-slow: .venv/.ready
	$(BIN)/pytest -m slow

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv site build dist *.egg-info
