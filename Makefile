# make quickstart   train, shard and decode a small model on this machine, in minutes; with FSDP2,
#                   or with DeepSpeed: make quickstart ENGINE=zero3
# make test         the tests (make test ARGS="-k plans -x" passes arguments to pytest)
# make test-slurm   the job scripts on a real Slurm of two nodes, started here (root; docs/slurm.md)
# make fuzz         1,000 hostile configs, files, checkpoints and prompts, given to every command
# make lint         ruff, mypy, shell syntax
# make bench        the speed benchmarks, tables and JSON lines, in about 22 minutes (runs/benchmarks)
# make reproduce    the evidence of docs/results.md: 18 trainings and their decoding, about an hour;
#                   interrupted, it goes on (runs/reproduce); then a real model: reproduce-smollm2
# make clean        delete the environment and all caches; runs/ and data/ stay
#
# Each makes the environment .venv first if it is missing or older than constraints.txt or
# pyproject.toml. Another interpreter, 3.11 or newer: make clean && make PYTHON=python3.12 test

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
REAL_STAMP := $(VENV)/.installed-real
# Python compiles what is imported anyway; compiling all of torch here would take longer.
PIP := $(BIN)/python -m pip install --no-compile --no-build-isolation -c constraints.txt
STARTED := $(shell date +%s)
ENGINE ?= fsdp

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slurm fuzz lint bench reproduce reproduce-smollm2 clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

quickstart: $(STAMP)
	QUICKSTART_STARTED=$(STARTED) $(BIN)/python -m benchmarks.quickstart engine=$(ENGINE) $(ARGS)

test: $(DEV_STAMP)
	$(BIN)/python -m pytest $(ARGS)

# Prints what each fault cost: steps to do again, seconds until the next new step.
test-slurm: $(DEV_STAMP)
	@$(BIN)/python -m tests.slurm.cluster
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm -s tests/slurm $(ARGS)

fuzz: $(DEV_STAMP)
	SKIPSTONE_FUZZ=1000 $(BIN)/python -m pytest tests/fuzz $(ARGS)

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@for script in .ci/run $(wildcard slurm/*.sh); do bash -n "$$script" || exit 1; done

# Each claim has its script. What it prints is kept, so that a figure can be traced to its run.
BENCHMARKS := savings exit_loss plain packed saving scale decode
bench: $(STAMP)
	@mkdir -p runs/benchmarks
	@for name in $(BENCHMARKS); do \
	  echo "== python -m benchmarks.$$name"; \
	  $(BIN)/python -m benchmarks.$$name > runs/benchmarks/$$name.txt || exit 1; \
	  grep -v '^{' runs/benchmarks/$$name.txt; \
	done

reproduce: $(STAMP)
	$(BIN)/python -m benchmarks.reproduce $(ARGS)

reproduce-smollm2: $(REAL_STAMP)
	$(BIN)/python -m benchmarks.reproduce.smollm2 $(ARGS)

# A stamp is touched last: an installation that failed is tried again. DeepSpeed's setup imports torch
# and has to find it here, hence the order and --no-build-isolation.
$(STAMP): constraints.txt pyproject.toml
	@command -v $(PYTHON) > /dev/null || { \
	  echo "no $(PYTHON) here: name a Python >= 3.11, as in: make PYTHON=python3 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch setuptools wheel ninja
	$(PIP) -e .
	@touch $@

$(DEV_STAMP): $(STAMP)
	$(PIP) -e ".[dev]"
	@touch $@

$(REAL_STAMP): $(STAMP)
	$(PIP) -e ".[real]"
	@touch $@

clean:
	rm -rf $(VENV) *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
