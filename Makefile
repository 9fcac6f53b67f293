# nightjar: `make demo` and `make test` need nothing but Python 3.11, git and make.
PY ?= python3.11
INSTALLER ?= uv
BIN := .venv/bin
export NIGHTJAR_HOME ?= $(CURDIR)/home

ifneq ($(strip $(PIP_FIND_LINKS)),)           # a folder with wheels, torch among them
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
else                                          # the public index: CPU or CUDA torch, by what the driver says
export UV_TORCH_BACKEND ?= auto
endif

.PHONY: help setup fmt check constraints test test-all test-services demo ui clean
.DEFAULT_GOAL := help

help:         ## list the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+): [^#]*## /\1|/' | awk -F'|' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: .venv/.stamp  ## create .venv and install everything, pinned by constraints.txt

.venv/.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PY) -m venv .venv
ifeq ($(INSTALLER),pip)
	$(BIN)/pip install --no-compile -c constraints.txt -e '.[dev]'
else
	$(BIN)/pip install -q 'uv==0.13.8'
	$(BIN)/uv pip install -p $(BIN)/python -c constraints.txt -e '.[dev]'
endif
	touch $@

fmt: setup    ## format, and mend what can be mended
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

check: setup  ## format, lint, types, direction of imports, constraints, images, compose file: under a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python tests/check_constraints.py
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml

constraints: setup  ## solve all dependencies anew into constraints.txt
	$(BIN)/pip install -q 'uv==0.13.8'
	rm -f constraints.txt
	env -u UV_FIND_LINKS -u UV_TORCH_BACKEND $(BIN)/uv pip compile -q --universal -p 3.11 --all-extras --no-annotate \
	  --custom-compile-command 'make constraints' pyproject.toml -o constraints.txt

test: setup   ## the fast tests
	$(BIN)/pytest -n auto --dist loadfile -m 'not slow and not services'

test-all: setup  ## every test, the slow ones too
	$(BIN)/pytest

test-services: setup  ## with real Redis, PostgreSQL and Chromium: exporters, docker/compose.yaml, backups, the shop page
	@(command -v redis-server && command -v chromium && (command -v initdb || ls /usr/lib/postgresql/*/bin/initdb)) \
	  >/dev/null 2>&1 \
	  || (apt-get update -q && apt-get install -y -q --no-install-recommends redis-server postgresql chromium) \
	  || echo 'apt cannot install redis-server, postgresql and chromium here: install them first' >&2
	REQUIRE_SERVICES=1 $(BIN)/pytest -m services

demo: setup   ## eight days of a simulated shop: raw logs to recommendations, two nights through Airflow
	$(BIN)/python demo.py

ui: setup     ## MLflow, Airflow and the page of each site with lists, on loopback; Ctrl-C stops all
	$(BIN)/python -m dags.local_stack

clean:        ## remove what the demo and the tests made (not .venv)
	rm -rf home build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
