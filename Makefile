# Two commands are all there is to know: `make sweep` and `make test`. Each sets up what it needs.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SWEEP  ?= sweeps/context_scaling.yaml

.PHONY: help venv sweep test check exhaustive ui clean

help:
	@echo "make sweep   run $(SWEEP) (another: make sweep SWEEP=sweeps/smoke.yaml)"
	@echo "make test    every check and every test"
	@echo "make check   the same without the slow tests, and an audit of the packages"
	@echo "make exhaustive   the tests that take many minutes"
	@echo "make ui      the MLflow UI on 127.0.0.1"
	@echo "make venv    set up $(VENV) only"
	@echo "make clean   remove $(VENV) and caches; results and mlflow.db stay"

$(VENV)/installed: pyproject.toml infra/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@echo "setting up $(VENV) (once; a few minutes, mostly torch)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint infra/constraints.txt --editable '.[dev,data,edge]'
	@infra/speech.sh || echo "the task speech has no data here; everything else goes on without"
	@touch $@

venv: $(VENV)/installed

sweep: venv
	@$(BIN)/python -m orchestrator sweep $(SWEEP)

test: venv
	@PATH="$(CURDIR)/$(BIN):$$PATH" infra/check.sh -m "not exhaustive"

check: venv
	@PATH="$(CURDIR)/$(BIN):$$PATH" infra/check.sh -m "not slow and not exhaustive"
	@$(BIN)/python infra/audit.py

exhaustive: venv
	@$(BIN)/pytest -m exhaustive

ui: venv
	@$(BIN)/python -m orchestrator ui

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
