# Needs Python 3.11.5 or newer and make. `make run` is the place to start.
PYTHON ?= python3
BIN := .venv/bin
SECONDS ?= 60
SEED ?= 1
# Test files side by side, more than there are cores, since tests wait for servers: on two cores, the fast tests take 93 s in
# two processes, 68 s in three, and 58 s in six.
PARALLEL := --dist loadfile --no-loadscope-reorder -n 6

# What `make test-lowest` runs, in a good minute: where packages of others are used most, and of long tests one of a kind.
LOWEST := .lowest
LOWEST_PYTHON ?= 3.11
LOWEST_TESTS := $(patsubst %,tests/celery/test_%.py,broker flower register results sender standalone tracing) \
	$(addprefix tests/celery/test_tasks.py::test_,many_sources_and_parts_over_two_workers a_run_that_is_revoked_never_publishes \
		a_long_run_reports_its_progress_as_the_tasks_state flower_triggers_runs_behind_its_password_and_shows_reports_and_failures) \
	tests/source/test_blocked.py tests/pipeline/test_run.py tests/pipeline/test_distributed.py tests/reader/test_reader.py \
	tests/reader/test_async_reader.py $(patsubst %,tests/reliability/test_%.py,cluster sentinels) \
	tests/scan/test_schema.py tests/snapshots/test_object_store.py tests/storage tests/watch \
	tests/web/test_routes.py tests/web/test_serve.py tests/web/test_trigger.py
LOWEST_TOOLS := pytest pytest-timeout pytest-xdist hypothesis flask flask-cors httpx2 moto playwright pyyaml \
	opentelemetry-instrumentation-celery opentelemetry-instrumentation-redis opentelemetry-sdk
# Hundreds of processes start in the tests: where containers set this, each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run up test test-fast test-lowest check docs bench chaos fuzz lock install

run: .venv/.service ## one scheduled run with a sample file and real processes
	$(BIN)/rolling-optimizer demo

up: .venv/.service ## Redis, worker, beat, watch, Flower and web in the foreground, until Ctrl-C
	$(BIN)/rolling-optimizer up

test: install ## every test, against real servers: side by side, then those marked `alone`; COV=--cov for coverage, a third longer
	$(BIN)/python -m pytest $(PARALLEL) -m "not alone" $(COV)
	$(BIN)/python -m pytest -m alone $(if $(COV),$(COV) --cov-append) $$(grep -rl 'mark\.alone' tests --include='test_*.py')

test-fast: install ## most laws and behaviour in a minute: no test marked `slow` or `alone`, a tenth of the examples
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not alone" --hypothesis-profile fast \
		--ignore tests/reliability --ignore tests/deployment --ignore tests/web/test_openapi.py --ignore tests/web/test_dashboard.py

# The tools of the tests are those of constraints.txt, and everything that pyproject.toml declares is the lowest. httpx:
# what Starlette's test client is made of in the versions for the lowest FastAPI. Warnings of deprecation, and of streams
# that this client leaves open, are no errors here: they come from old packages about newer ones.
test-lowest: install ## the tests of what others' packages do, with the lowest versions that pyproject.toml allows, on Python 3.11
	$(BIN)/uv venv --quiet --clear --python $(LOWEST_PYTHON) $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct -e '.[all]' httpx==0.27.2 \
		$$(for tool in $(LOWEST_TOOLS); do grep "^$$tool==" constraints.txt; done)
	$(LOWEST)/bin/python -m pytest -n 6 -m "not alone" --hypothesis-profile fast -W ignore::DeprecationWarning \
		-W 'ignore:Unclosed <MemoryObject:ResourceWarning' $(LOWEST_TESTS)

check: install ## lint, format, types and the order of the packages' imports; FIX=yes corrects what ruff can correct
	$(BIN)/ruff check $(if $(FIX),--fix) .
	$(BIN)/ruff format $(if $(FIX),,--check) .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

install: .venv/.installed ## .venv with the versions of constraints.txt

# What `run` and `up` need: 45 packages of the 112 that `install` takes, so that the first success comes soon. pip
# prints what it does.
SERVICE := celery,embedded,flower,watch,web
SOURCES_OF_INSTALL := pyproject.toml setup.py constraints.txt $(wildcard optimizer/scan/*.c optimizer/scan/kernel/*)
define install
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11, 5) or sys.exit("Python 3.11.5 or newer is needed, this is " + sys.version)'
	@echo 'installing into .venv, once: $(1)'
	@$(PYTHON) -m venv .venv
	@$(PIP) $(2)
endef
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# uv reads no pip.conf, so it is given pip's index. Where it fails all the same, as behind a proxy of pip.conf, pip goes on.
UV := UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null)}}" \
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt

.venv/.service: $(SOURCES_OF_INSTALL)
	$(call install,what a running service needs,-e '.[$(SERVICE)]')
	@touch $@

# By uv, which pip brings: it takes a tenth of pip's time.
.venv/.installed: $(SOURCES_OF_INSTALL)
	$(call install,the service and all tools and servers of the tests,--quiet uv)
	@$(UV) --compile-bytecode --reinstall-package rolling-optimizer -e '.[dev]' || $(PIP) -e '.[dev]'
	@touch .venv/.service $@

docs: install ## the site of docs/ with the API reference, in .site; fails on broken links
	$(UV) --quiet -e '.[dev,docs]' || $(PIP) --quiet -e '.[dev,docs]'
	$(BIN)/zensical build --clean --strict

bench: install ## the scan against inflate and its peers, the web against a bare endpoint, changes against the whole; writes docs/benchmarks.md; needs wrk and Chromium
	$(UV) --quiet -e '.[dev,bench]' || $(PIP) --quiet -e '.[dev,bench]'
	$(BIN)/python -m benchmarks

chaos: install ## faults of every kind for SECONDS (60) with SEED (1), and 3,000 ticks at speed; writes docs/reliability.md
	$(BIN)/python -m pytest tests/reliability --long-life --chaos-s $(SECONDS) --chaos-seed $(SEED)

fuzz: ## the kernel under sanitizers for SECONDS (60); needs clang and its runtime
	tests/scan/kernel/fuzz.sh $(SECONDS)

lock: install ## renew constraints.txt from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11.5 --all-extras --no-annotate --no-header --upgrade \
		--no-emit-index-url --no-emit-find-links pyproject.toml -o constraints.txt
