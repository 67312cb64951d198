# Everything happens in a virtual environment in .venv, made from what PyPI has.
# Needs Python 3.11 or newer, g++, make and perl. `make verilog PYTHON=python3.12` picks a Python.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build
# Processes of pytest.
JOBS ?= 2

.PHONY: help verilog test test-all bench lint clean

help:
	@echo "make verilog   generate the default configuration and drive a layer through it"
	@echo "make test      the tests (half an hour on 2 cores)"
	@echo "make test-all  the slow tests too"
	@echo "make bench     measure the figures of the README (hours; goes on where it was stopped)"
	@echo "make lint      ruff and pyright"
	@echo "make clean     remove build/ and .venv/"

# Generates, builds the simulator and runs the layer; the program reuses what is up to date.
verilog: $(VENV)/.sim
	$(BIN)/python -m systolora_sim.demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow"

test-all: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS)

bench: $(VENV)/.test
	$(BIN)/python scripts/bench.py
	$(BIN)/python scripts/utilization.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer, please")'
	$(PYTHON) -m venv $(VENV)

# Each stamp holds the time of an installation that went well.
$(VENV)/.sim: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[sim]'
	touch $@

$(VENV)/.test: $(VENV)/.sim
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[sim,test]'
	touch $@

clean:
	rm -rf $(BUILD) $(VENV) .pytest_cache .ruff_cache .hypothesis
	find hw sim tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
