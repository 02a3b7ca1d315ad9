# Every target makes .venv when it is missing; nothing else needs installing by hand.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test test-slow lint clean

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[test]' -c constraints.txt
	touch $@

# large tensors stay in the heap instead of going back to the kernel after every operation (docs/performance.md)
demo: export MALLOC_ARENA_MAX = 1
demo: export MALLOC_MMAP_MAX_ = 0
demo: export MALLOC_TRIM_THRESHOLD_ = 17179869184
demo: export MALLOC_TOP_PAD_ = 268435456
demo: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
demo: .venv/.ready
	$(BIN)/erasure demo

test: lint
	$(BIN)/pytest

test-slow: .venv/.ready
	$(BIN)/pytest -m slow

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info
