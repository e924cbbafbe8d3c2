# Two commands set everything up: `make study` runs the quickstart study, `make test` the tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin

.PHONY: install study test test-slow lint

install: .venv/installed

.venv/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "alignlab needs Python 3.11 or 3.12; got $$($(PYTHON) --version). Set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

study: install
	$(BIN)/alignlab study run experiments/studies/quickstart.yaml

test: install lint
	$(BIN)/python -m pytest -m "not slow" -n 2

test-slow: install
	$(BIN)/python -m pip install --quiet --editable ".[test,quantization]"
	$(BIN)/python -m pytest -n 2

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
