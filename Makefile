# The only entry to every routine task. Each target sets up .venv first, if that is out of date.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
# The first Python that is new enough; `make setup PYTHON=...` for another.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell \
	$(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)))
# Arguments for pytest, such as `make test-fast T="-k clock -x"`.
T ?=
TEST_SECONDS := 600
FAST_SECONDS := 60

##@ Run

run: setup ## serve from an embedded SQLite file under var/, with example data and sample calls
	$(BIN)/authz demo

run-stack: setup ## the production shape: PostgreSQL and Valkey from wheels, two workers; also a revoke
	$(BIN)/authz demo --stack

##@ Test

test: setup ## the whole suite, in two stages: in parallel, then what needs the machine alone
	@.ci/stages $(TEST_SECONDS) "not long" $(T)

test-fast: setup ## everything that starts no server
	@.ci/stages $(FAST_SECONDS) "not long and not server and not alone" $(T)

test-long: setup ## the whole suite and the nightly sizes
	@.ci/stages 0 "long or not long" --hypothesis-profile=nightly --timeout=3600 $(T)

##@ Generated files

protos: setup ## write authz_service/pb from protos/
	$(BIN)/python protos/generate.py

protos-check: setup ## fail if authz_service/pb is not what protos/ says
	$(BIN)/python protos/generate.py --check

docs: setup ## write the pages of docs/ that are made from the code
	$(BIN)/python docs/generate.py

docs-check: setup ## fail if one of these pages is stale
	$(BIN)/python docs/generate.py --check

##@ Judge

format: setup ## put all Python code into the one form
	$(BIN)/ruff check --select I --fix
	$(BIN)/ruff format

lint: setup ## ruff, import-linter, deptry, buf
	@failed=0; \
	for tool in "ruff check" "ruff format --check" "lint-imports" "deptry authz_service" \
			"python protos/lint.py"; do \
		echo "$$tool"; $(BIN)/$$tool || failed=1; \
	done; exit $$failed

types: setup ## mypy, strict
	$(BIN)/mypy

bench: setup ## measure, write JSON and a table
	$(BIN)/python -m benchmarks

# All steps, whatever the first ones say: one run tells everything. The tests have the last word.
ci: ## exactly what the build server runs
	@failed=""; \
	for step in setup protos-check docs-check lint types test; do \
		$(MAKE) $$step || failed="$$failed $$step"; \
	done; \
	if test -n "$$failed"; then echo "failed:$$failed"; exit 1; fi

##@ Set-up

setup: .venv/installed ## make .venv from requirements.lock; done again only if that changed

# pip, not the venv module alone, decides what is up to date, so an old .venv is mended in place.
.venv/installed: pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed"; exit 1; }
	@echo "setting up .venv with $(PYTHON)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation --editable .
	@touch $@

lock: ## write requirements.lock anew, with the newest versions that pyproject.toml allows
	@rm -rf var/lock && $(PYTHON) -m venv var/lock
	@var/lock/bin/python -m pip install --quiet --upgrade pip setuptools
	@var/lock/bin/python -m pip install --quiet --group test --group tools --editable '.[stack,fast]'
	@{ sed '/^[^#]/,$$d' requirements.lock; var/lock/bin/python -m pip freeze --all \
		--exclude-editable --exclude pip; } > var/requirements.lock
	@mv var/requirements.lock requirements.lock && rm -rf var/lock

clean: ## remove what make made; data only under var/
	rm -rf .venv var build dist *.egg-info .coverage
	rm -rf .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find authz_service tests docs protos benchmarks -name __pycache__ -prune -exec rm -rf {} +

help:
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run run-stack test test-fast test-long protos protos-check docs docs-check format lint \
	types bench ci setup lock clean help
