# make demo | make test | make check | make docs: each sets up .venv first where pyproject.toml changed since the last time
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: demo test lint check docs clean

demo: $(READY)
	$(BIN)/python models/demo.py

test: $(READY)
	$(BIN)/python -m pytest -n 2 $(PYTEST_FLAGS)

lint: $(READY)
	$(BIN)/ruff check .; ruff=$$?; $(BIN)/mypy && exit $$ruff

check: lint test

docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
