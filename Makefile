# make train installs what a run needs, make test and make check also install the development tools. Overrides: make train ARGS="model=conv3 epochs=3"
.PHONY: setup train test test-slow check ui bench

# The first of these that TensorFlow has a wheel for.
PYTHONS := python3 python3.13 python3.12 python3.11
FITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(firstword $(foreach python,$(PYTHONS),$(shell $(python) -c "$(FITS)" 2>/dev/null && echo $(python))))
BIN := .venv/bin
INSTALLED := .venv/installed
DEVELOPMENT := .venv/installed-dev
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

setup: $(DEVELOPMENT)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11, 3.12 or 3.13 with venv (TensorFlow has no wheel for others)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(INSTALL) .
	@touch $@

$(DEVELOPMENT): $(INSTALLED)
	$(INSTALL) ".[dev]"
	@touch $@

train: $(INSTALLED)
	@$(BIN)/experiments train $(ARGS)

# Two processes share the files, because the tests of a file share what its fixtures have trained.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(DEVELOPMENT)
	@$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(DEVELOPMENT)
	@$(PYTEST) -m slow $(ARGS)

check: $(DEVELOPMENT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ui: $(INSTALLED)
	@$(BIN)/experiments ui $(ARGS)

bench: $(DEVELOPMENT)
	@$(BIN)/python benchmarks/overhead.py $(ARGS)
	@$(BIN)/python benchmarks/trust.py $(ARGS)
	@$(BIN)/python benchmarks/sweep.py
	@$(BIN)/python benchmarks/compare.py
	@$(BIN)/python benchmarks/predict.py
	@$(BIN)/python benchmarks/memory.py
	@$(BIN)/python benchmarks/augment.py
	@$(BIN)/python benchmarks/stored_images.py
