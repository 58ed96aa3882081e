# Everything runs in .venv, without root and without containers. `make PYTHON=python3.13 setup` picks another Python.
PYTHON ?= python3
ARGS ?=
SEEDS ?= 2000
FAULTS ?= 200
FUZZ_SECONDS ?= 600
SECONDS ?= 30
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
ROOMS := engine flushers recovery drills bench examples

.DEFAULT_GOAL := help
.PHONY: help setup demo load test fuzz lint types imports bench campaign mutants simulate build clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with the pinned dependencies and the project itself

$(STAMP): constraints.txt pyproject.toml setup.py .ci/link
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 setup" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python .ci/link $(BIN)/python
	@touch $@

demo: setup ## Show a crash and a recovery on servers of its own (ARGS=...)
	$(BIN)/writebehind demo $(ARGS)

load: setup ## Load the FastAPI example while its flusher is killed twice (SECONDS=30)
	$(BIN)/python -P -m writebehind.examples.load.cli --seconds $(SECONDS) $(ARGS)

test: setup ## Run the tests, two at a time (ARGS="-k name -x")
	$(BIN)/pytest --numprocesses 2 --dist loadfile $(ARGS)

fuzz: setup ## Give the decoder, the validator and the parsers anything at all (FUZZ_SECONDS=600)
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/pytest tests/fuzz -o timeout=$$(( $(FUZZ_SECONDS) + 120 )) $(ARGS)

lint: setup ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## Check types
	$(BIN)/mypy $(addprefix -p writebehind.,$(ROOMS))
	$(BIN)/mypy tests --exclude '^tests/typing/'
	@if [ -d tests/typing ]; then set -x; cd tests/typing && ../../$(BIN)/mypy --config-file ../../pyproject.toml --no-explicit-package-bases .; fi

imports: setup ## Check the layers
	$(BIN)/lint-imports

bench: setup ## Measure (ARGS=...)
	$(BIN)/writebehind bench $(ARGS)

campaign: setup ## Inject random faults on all servers found here (FAULTS=200, ARGS="--seconds 600 --seed 1")
	$(BIN)/writebehind drill campaign --faults $(FAULTS) $(ARGS)

simulate: setup ## Run many histories in the simulator (SEEDS=2000, ARGS="--seed 17")
	PYTHONPATH=tests $(BIN)/python -P -m simulator --seeds $(SEEDS) $(ARGS)

mutants: setup ## Plant faults in the code and see that the tests notice
	$(BIN)/python tests/mutants/run.py

build: setup ## Build the wheel and the source distribution into dist/
	rm -rf dist build
	$(BIN)/python -m build --no-isolation --outdir dist .

clean: ## Remove what can be made again
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find $(ROOMS) tests -name __pycache__ -type d -prune -exec rm -rf {} +
