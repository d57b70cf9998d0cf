# Every target sets up what it needs: on a fresh machine `make test` or `make demo` is the only command.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow test-browser lint clean

demo: $(STAMP)
	$(BIN)/tritune demo --output demo --overwrite

test: $(STAMP)
	$(BIN)/python -m pytest -q -m "not slow" -n auto --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

# The report as a browser shows it; needs chromium or chrome, as Debian's package `chromium`.
test-browser: $(STAMP)
	$(BIN)/python -m pytest -q -m browser -rs tests

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

# The pages as a site in build/docs; a warning is an error, and so is a link that leads nowhere.
.PHONY: docs test-docs
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test-docs: $(STAMP)
	$(BIN)/python -m pytest -q tests/test_docs.py

clean:
	rm -rf $(VENV) demo build dist
