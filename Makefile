# On a fresh machine with Python >= 3.11, make and a C compiler:
#   make serve     sets up .venv and serves the embedded model on 127.0.0.1:8000
#   make test      sets up .venv and runs every check
#   make test-clients   the same with what other projects' clients need, and runs them and a browser

PORT ?= 8000
ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= logical
# Hundreds of processes would compile each module anew.
unexport PYTHONDONTWRITEBYTECODE
# Asked first for torch where there is no NVIDIA GPU; empty: pip's default at once.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# Which Python makes .venv; empty: python3.
PYTHON ?=
EXTRA ?= run

BIN := .venv/bin
INTERPRETED = OPSIN_KERNELS=interpret TRITON_INTERPRET=1 $(BIN)/pytest
CLIENT_TESTS = tests/real_clients $(wildcard tests/browser)
CLIENT_PINS = tests/real_clients/requirements.txt tests/real_clients/package-lock.json
SETUP = PYTHON='$(PYTHON)' TORCH_CPU_INDEX='$(TORCH_CPU_INDEX)' sh deploy/setup.sh
# A .venv that was copied here still runs the code it came from: set up again.
MOVED := $(if $(wildcard .venv/.where),$(if $(filter $(realpath .),$(shell cat .venv/.where)),,moved))

.DEFAULT_GOAL := help
.PHONY: help setup setup-test setup-clients serve test test-clients nightly bench format clean distclean moved

help:
	@echo 'make serve [PORT=8000] [ARGS="MODEL_DIR --api-key KEY"]   set up, then serve on 127.0.0.1'
	@echo 'make test [PYTEST_ARGS="-k words"]                        set up, then run every check'
	@echo 'make test-clients                                         tests with real clients and a browser (Node.js, Chromium)'
	@echo 'make nightly                                              the long forms of the tests'
	@echo 'make bench [ARGS=...]                                     measure (bench/serve.py)'
	@echo 'make format                                               let ruff format and fix'
	@echo 'make setup [PYTHON=python3.12]                            only make .venv (setup-test: with the test tools)'
	@echo 'make clean, make distclean                                remove caches; also what was set up'

setup: .venv/.setup-$(EXTRA)
	@:
setup-test: .venv/.setup-test
	@:

.venv/.setup-run: pyproject.toml constraints.txt $(MOVED)
	@$(SETUP) run

.venv/.setup-test: pyproject.toml constraints.txt $(MOVED)
	@$(SETUP) test

setup-clients: .venv-clients/.setup
	@:

.venv-clients/.setup: .venv/.setup-test deploy/setup-clients.sh $(CLIENT_PINS) $(MOVED)
	@sh deploy/setup-clients.sh

serve: setup
	@$(BIN)/opsin serve --port $(PORT) $(ARGS)

test: setup-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile -m 'not nightly and not clients' $(PYTEST_ARGS)
	$(INTERPRETED) -n $(WORKERS) --maxprocesses 8 --dist worksteal -m 'not nightly' tests/kernels/interpreted

test-clients: setup-clients
	$(BIN)/pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile -m clients $(CLIENT_TESTS) $(PYTEST_ARGS)

nightly: setup-test
	$(INTERPRETED) -m nightly tests/kernels/interpreted
	$(BIN)/pytest -m nightly --timeout 7200 -o junit_family=xunit1 --junitxml build/nightly.xml $(PYTEST_ARGS)
	$(BIN)/python bench/nightly.py build/nightly.xml
	$(BIN)/python bench/sdk_shares.py build/nightly.xml

bench: setup-test
	$(BIN)/python bench/serve.py $(ARGS)

format: setup-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf build dist .hypothesis .mypy_cache .ruff_cache .import_linter_cache .pytest_cache
	find . -name __pycache__ -not -path './.venv*/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-clients tests/real_clients/node_modules
