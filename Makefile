# The two commands of the README are `make start` and `make test`; `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.ready-run
TEST_STAMP := $(VENV)/.ready-test
DEV_STAMP := $(VENV)/.ready-dev

.DEFAULT_GOAL := help
.PHONY: help start test test-long dev check format bench docs lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | awk -F'|' '{printf "  %-10s %s\n", $$1, $$2}'

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Automagik needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/uv.txt

define install
	@echo "Setting up $(VENV) ($(1)) ..."
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes --only-binary :all: -r requirements/$(1).txt
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
endef

$(RUN_STAMP): requirements/run.txt pyproject.toml | $(BIN)/uv
	$(call install,run)
	@touch $@

$(TEST_STAMP): requirements/test.txt pyproject.toml | $(BIN)/uv
	$(call install,test)
	@touch $@ $(RUN_STAMP)

$(DEV_STAMP): requirements/dev.txt pyproject.toml | $(BIN)/uv
	$(call install,dev)
	@touch $@ $(TEST_STAMP) $(RUN_STAMP)

start: $(RUN_STAMP) ## set everything up, start the platform and ask the agent `simple` one question
	@$(BIN)/python scripts/start.py

dev: $(DEV_STAMP) ## set up for development and serve with reload on code changes
	@$(BIN)/automagik serve --reload

# A test that failed is tried once more, and the first failure is told: CONTRIBUTING.md says why.
SECOND_TRY := --reruns 1

# One process more than there are cores: tests wait for other processes about as long as they compute. Bytecode is kept even where
# the environment says otherwise: without it, every process compiles the platform and rewrites the tests anew.
test test-long: export PYTHONDONTWRITEBYTECODE =
test: $(TEST_STAMP) ## the whole suite but the tests of over 30 seconds
	@$(BIN)/pytest -n "$$($(BIN)/python -c 'import os; print((os.cpu_count() or 1) + 1)')" --dist worksteal -m "not long" $(SECOND_TRY) --durations 25

test-long: $(TEST_STAMP) ## the tests of over 30 seconds
	@$(BIN)/pytest -m "long and alone" $(SECOND_TRY) --durations 10 tests/chaos tests/runs
	@$(BIN)/pytest -n "$$($(BIN)/python -c 'import os; print((os.cpu_count() or 1) + 2)')" --dist worksteal -m "long and not alone" $(SECOND_TRY) --durations 10

check: $(DEV_STAMP) ## lint, types, room boundaries, generated references
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/basedpyright
	@$(BIN)/python scripts/reference.py --check

format: $(DEV_STAMP) ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(DEV_STAMP) ## measure against the baselines; ONLY=NAME runs one
	@$(BIN)/python -m benchmarks $(ONLY)

docs: $(DEV_STAMP) ## write the generated references and build the documentation into site/
	@$(BIN)/python scripts/reference.py
	@$(BIN)/mkdocs build --strict --quiet

lock: $(BIN)/uv ## resolve the dependencies anew into requirements/
	@for set in run test dev; do \
	  group=$$([ $$set = run ] || echo "--group $$set"); \
	  $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-header \
	    pyproject.toml requirements/build.in $$group --output-file requirements/$$set.txt; done
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-header requirements/uv.in --output-file requirements/uv.txt

clean: ## remove what the targets made
	@rm -rf $(VENV) site .ruff_cache .hypothesis .import_linter_cache
