# Everything a person or CI runs. Each target makes its own environment in .venv; only Python 3.11 or newer is needed.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install demo up test test-unit test-slow coverage test-ui test-postgres test-long test-fuzz test-third-parties wheel test-wheel bench bench-long check hooks requirements reference clean

help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

install: .venv/run  ## make the environment: .venv/bin/sync-orchestrator

demo: .venv/run  ## play the whole story, with a proof at the end (about five minutes)
	$(BIN)/python -m demo.story

up: .venv/run  ## start everything with the demo's systems; the UI is at http://127.0.0.1:3000, or PORT=, API_PORT=
	$(BIN)/python -m demo.up $(if $(PORT),--port $(PORT)) $(if $(API_PORT),--api-port $(API_PORT))

# Without bytecode on disk each process that a test starts, and each of pytest's, would compile everything anew.
test test-unit: export PYTHONDONTWRITEBYTECODE =
test: .venv/dev  ## run the tests
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder

test-unit: .venv/dev  ## run the tests that need no database, in seconds
	$(BIN)/python -m pytest -n 2 --dist loadscope tests/unit

coverage: .venv/dev  ## measure how much of the package tests/unit and tests/integration run; fails below the floor in pyproject.toml
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not long and not ui" -n 2 --dist loadscope tests/unit tests/integration \
		--deselect tests/integration/core/full_sync/test_group_lease.py::test_sigterm_gives_the_business_group_back_at_once
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-slow: export PYTHONDONTWRITEBYTECODE =
test-slow: .venv/dev  ## what takes seconds a test: processes that are stopped and killed, embedded servers, planted bugs
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder -m "slow and not long and not ui"

test-ui: .venv/dev  ## what a user does in the Dagster UI, by clicks in a browser; SYNC_UI_PICTURES=FOLDER keeps pictures
	$(BIN)/python -m pytest -m ui tests/ui

test-postgres: .venv/dev  ## the tests that matter for SQL, on this machine's Postgres or SYNC_TEST_DATABASE_URL
	$(BIN)/python tests/support/on_machines_postgres.py -n 2 --dist loadscope

test-long: .venv/dev  ## more and longer random histories, 1,234 spoiled records under live load, 200 kills of captured streams
	SYNC_TEST_HISTORIES=2000 SYNC_TEST_STEPS=100 $(BIN)/python -m pytest -m "long or not long" tests/guarantees/test_invariants.py
	SYNC_TEST_NUMBERED_HISTORIES=1000 $(BIN)/python -m pytest tests/guarantees/test_numbered_histories.py
	SYNC_TEST_TWO_WAY_HISTORIES=2000 SYNC_TEST_TWO_WAY_STEPS=80 $(BIN)/python -m pytest tests/guarantees/test_two_way_histories.py
	$(BIN)/python -m pytest -m long tests/guarantees/test_validation_under_load.py tests/guarantees/test_capture_kills.py tests/field/test_field_outages.py tests/dagster/test_run_cancellation.py

test-fuzz: .venv/dev  ## 60,000 odd requests and responses against real processes, with a table at the end (under ten minutes)
	$(BIN)/python -m pytest -m long tests/fuzz

test-third-parties: .venv/dev  ## the same promises on five servers that exist, installed from registries; needs npm
	$(BIN)/python tests/third_parties/installing.py
	$(BIN)/python -m pytest tests/third_parties

wheel: .venv/run  ## build the wheel and the source distribution in dist
	rm -rf build dist
	$(BIN)/python -c 'from setuptools import build_meta as make; make.build_sdist("dist"); make.build_wheel("dist")'

test-wheel: wheel  ## install the wheel into a clean environment and try it there (some minutes)
	$(BIN)/python tests/support/try_wheel.py

bench: .venv/dev  ## measure everything beside bare loops and peers (needs wrk; a quarter of an hour); ARGS=--quick: three minutes
	$(BIN)/python -m bench.intake $(ARGS)
	$(BIN)/python -m bench.capture $(ARGS)
	$(BIN)/python -m bench.flood $(ARGS)
	$(BIN)/python -m bench.drain $(ARGS)
	$(BIN)/python -m bench.thin_events $(ARGS)
	$(BIN)/python -m bench.steady $(ARGS)
	$(BIN)/python -m bench.full_sync $(ARGS)
	$(BIN)/python -m bench.comparison $(ARGS)
	$(BIN)/python -m bench.growth $(ARGS)
	$(BIN)/python -m bench.commands $(ARGS)
	$(BIN)/python -m bench.slow_server $(ARGS)
	$(BIN)/python -m bench.killed_full_sync $(ARGS)
	$(BIN)/python -m bench.peers $(ARGS)
	$(BIN)/python -m bench.summary

bench-long: .venv/dev  ## full sync, comparison and ledger of millions, an hour of idling
	$(BIN)/python -m bench.full_sync --long
	$(BIN)/python -m bench.comparison --long
	$(BIN)/python -m bench.growth --long
	$(BIN)/python -m bench.capture --long
	$(BIN)/python -m bench.steady --long

check: .venv/dev  ## style, spelling, docstrings, types, architecture, definitions, known vulnerabilities of the pinned packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports
	SYNC_CONFIG=demo/sync.yaml VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/dg check defs
	$(BIN)/python requirements/audit.py

hooks: .venv/dev  ## run the quick checks on each commit of this clone, by pre-commit
	$(BIN)/pre-commit install

# All files that were published of each version, so that the pins hold on every platform.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links --no-strip-extras

requirements: .venv/dev  ## compile the pinned requirement files anew, with the hashes of all packages
	$(COMPILE) pyproject.toml --extra all --group demo --group build -o requirements/run.txt
	$(COMPILE) pyproject.toml --extra all --group demo --group build --group dev -o requirements/dev.txt
	echo datasette==1.0a41 | $(COMPILE) --no-annotate - -o tests/third_parties/packages/datasette.txt
	for peer in "celery celery[redis] gevent requests" "dlt dlt requests" "drt drt-core" \
		"tables datacompy pyarrow reladiff psycopg2-binary psycopg[binary] sqlalchemy"; do set -- $$peer; name=$$1; shift; \
		printf '%s\n' "$$@" | $(COMPILE) --no-annotate - -o bench/peers/requirements/$$name.txt || exit 1; done

reference: .venv/run  ## write docs/commands.md anew from the commands
	$(BIN)/python -m sync_orchestrator.cli.reference > docs/commands.md

clean:  ## remove the environment and all local data
	rm -rf .venv .sync .third-parties .peers

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

# Every package is compared with its hash. What builds the project itself is one of them: pip fetches nothing else.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.venv/run: .venv/bin/python requirements/run.txt pyproject.toml
	$(INSTALL) --require-hashes -r requirements/run.txt
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev: .venv/run requirements/dev.txt
	$(INSTALL) --require-hashes -r requirements/dev.txt
	@touch $@
