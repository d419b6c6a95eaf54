# Every target does its own set-up: Python >= 3.11, git, make and a C++ compiler are enough.
# The virtual environment is made once and reused; an existing one is only added to.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/quickstart
# Tests run in a process per core, with a thread each.
WORKERS ?= auto
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --benchmark-disable -n $(WORKERS) \
  --maxprocesses=8 --dist=worksteal
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := pyproject.toml CMakeLists.txt $(shell find kernels/cpp -type f 2>/dev/null)
PACKAGES := fula_fast/__init__.py kernels/__init__.py pipelines/__init__.py bench/__init__.py

# What covers the store, the files below it, and the parsing of specs.
COVERING := tests/store tests/files tests/study tests/test_paths.py tests/runs/test_workers.py \
  tests/runs/test_without_posix.py tests/runs/test_similarity.py tests/models/libraries/test_inputs.py

.PHONY: help quickstart test test-slow test-long coverage gpu-check gpu-visit lint bench install
help:
	@echo "make quickstart   install, stitch two small networks, write a report (a few minutes)"
	@echo "make test         install, run the tests"
	@echo "make test-slow    the tests that CI runs on top: packaging, embedding, sanitizers"
	@echo "make test-long    what is run by hand: hours"
	@echo "make gpu-check    tests and benchmarks on a CUDA device, in eleven minutes"
	@echo "make gpu-visit    what a bare GPU machine needs, in .gpu/, and the commands to run there"
	@echo "make lint | bench"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is Python " \
	  + sys.version.split()[0] + "; 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python $(NATIVE) $(PACKAGES)
	$(PIP) install --quiet -e .
	@touch $@

$(VENV)/.installed-test: $(BIN)/python $(NATIVE) $(PACKAGES)
	$(PIP) install --quiet -e '.[test]'
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed

quickstart: install
	$(BIN)/fula-fast sweep fula_fast/specs/quickstart.toml --out $(RUN) --resume
	@echo "report: $(abspath $(RUN))/report.html"

test: $(VENV)/.installed-test
	$(PYTEST) -m 'not slow and not long and not gpu'

# Hours: whole option tables, statistics of many draws, damage at every file.
test-long: $(VENV)/.installed-test
	$(PYTEST) -m 'long and not gpu' $(LONG)

test-slow: $(VENV)/.installed-test
	$(PYTEST) -m 'slow and not long and not gpu' --durations=25 $(SLOW)

# Fails where a line or branch of what pyproject.toml lists is left out; processes that tests start
# count too. Not among the packages that tests need: pip install 'coverage>=7.10'.
coverage: $(VENV)/.installed-test
	$(BIN)/python -m coverage erase
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -q -n $(WORKERS) --maxprocesses=8 \
	  --dist=worksteal -m 'not slow and not long and not gpu' $(COVERING)
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

# Installs nothing: runs in $(VENV) where there is one, else with $(PYTHON) as it is.
gpu-check:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m bench.harness.gpu_check $(if $(PLAN),--plan $(PLAN))

# DALI=1: NVIDIA DALI too.
gpu-visit: $(VENV)/.installed-test
	$(BIN)/python -m bench.harness.gpu_visit $(if $(DALI),--dali)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	BIN=$(BIN) .ci/types --baselinemode=lock

bench: $(VENV)/.installed-test
	$(BIN)/fula-fast bench
