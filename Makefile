# Everything a contributor does, from a checkout, Python 3.10 or newer and make.
# Each target makes the virtual environment that it needs. `make` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# What to test and how: make test TESTS=tests/unit/test_keys.py PYTEST_ARGS=-x
TESTS ?=
PYTEST_ARGS ?=
# Test processes, each with a server of its own; 0: in the process you see, as
# must be when all would use the one server that REDIS_URL names.
JOBS ?= $(if $(REDIS_URL),0,2)
CELERY_VERSIONS = 5.5 5.6 5.7
OLDEST_CELERY = 5.5
# What depends most on Celery's own ways.
OLDEST_TESTS = tests/unit tests/compat/test_canvas.py tests/compat/test_retries.py \
	$(addprefix tests/smoke/test_,endings.py pools.py kills.py lost.py cancel.py \
	progress.py offers.py monitors.py)

PYTEST = -m pytest --numprocesses=$(JOBS) --dist=loadfile $(PYTEST_ARGS) $(TESTS)
# A command alone on its line gets make's signals itself, without a shell
# between, so that what it started is stopped with it.
venv = @PYTHON="$(PYTHON)" tools/venv

.DEFAULT_GOAL := help
.NOTPARALLEL:

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z%.-]+:.*## / { sub(/%/, "5.5", $$1); printf "  make %-24s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## See it work: server, worker and client. REDIS_URL, if set, is used.
	$(venv) $(VENV) demo
	@$(BIN)/python -m example_project

.PHONY: test
test: ## Run all tests (TESTS=..., PYTEST_ARGS=..., JOBS=2).
	$(venv) $(VENV) test
	@$(BIN)/python $(PYTEST)

.PHONY: test-fast
test-fast: ## Run the unit tests: no server, about a second.
	$(venv) $(VENV) test
	@$(BIN)/python -m pytest $(PYTEST_ARGS) tests/unit

.PHONY: test-rabbitmq
test-rabbitmq: export BGTASK_TEST_AMQP_URL ?= amqp://guest:guest@127.0.0.1:5672//
test-rabbitmq: ## Run the tests with RabbitMQ as broker (BGTASK_TEST_AMQP_URL=...).
	$(venv) $(VENV) test
	@$(BIN)/python $(PYTEST) -m rabbitmq

.PHONY: test-celery-integration
test-celery-integration: ## Run Celery's own tests with every task limited (CELERY=path).
	$(venv) $(VENV) test
	@$(BIN)/python -m tests.celery_integration $(CELERY) --limit=$(or $(LIMIT),0) $(PYTEST_ARGS)

.PHONY: mutants
mutants: ## Break the package in a hundred ways: a test must fail each time (MUTANTS=...).
	$(venv) $(VENV) test
	@$(BIN)/python -m tests.mutation "$(MUTANTS)"

test-celery-%: ## Run all tests with one release of Celery.
	$(venv) $(VENV)-celery-$* test "celery==$*.*"
	@$(VENV)-celery-$*/bin/python $(PYTEST)

.PHONY: test-oldest
test-oldest: ## Run the tests that depend most on Celery with its oldest release.
	@$(MAKE) --no-print-directory test-celery-$(OLDEST_CELERY) TESTS="$(OLDEST_TESTS)"

.PHONY: matrix
matrix: ## Run all tests with each Celery, Python, broker and server (NOX_ARGS=-l).
	$(venv) $(VENV) matrix
	@$(BIN)/nox $(or $(NOX_ARGS),--session tests) -- $(PYTEST_ARGS) $(TESTS)

.PHONY: bench bench-short bench-peers
bench: ## Measure all beside plain Celery, 8 minutes (BENCH_ARGS="--json FILE").
	$(venv) $(VENV) demo
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)
bench-short: ## The same in a minute or two, less exactly.
	$(venv) $(VENV) demo
	@$(BIN)/python -m benchmarks --short $(BENCH_ARGS)
bench-peers: ## Give other packages the same burst on one key, and count.
	$(venv) $(VENV)-bench bench
	@$(VENV)-bench/bin/python -m benchmarks.peers $(BENCH_ARGS)

.PHONY: bench-progress
bench-progress: ## Measure how long a report takes to its callback (BENCH_ARGS=...).
	$(venv) $(VENV) demo
	@$(BIN)/python -m benchmarks.report_latency $(BENCH_ARGS)

.PHONY: chaos
chaos: ## Kill, cut and restart at random; check the promises (SEED=, MINUTES=1, BROKER=redis).
	$(venv) $(VENV) test
	@$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) --minutes $(or $(MINUTES),1) --broker $(or $(BROKER),redis)

.PHONY: failover
failover: ## Let a replica that lags take over; print what is lost and how it heals.
	$(venv) $(VENV) test
	@$(BIN)/python -m tests.chaos.failover

.PHONY: load
load: ## A million tasks over N/10 keys, many waiting, many results (N=1000000).
	$(venv) $(VENV) demo
	@$(BIN)/python -m tests.chaos.load --tasks $(or $(N),1000000)

.PHONY: coverage
coverage: ## Run all tests and show the lines and branches they miss.
	$(venv) $(VENV) test
	@rm -f .coverage .coverage.*
	@$(BIN)/python -m coverage run $(PYTEST)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

.PHONY: check
check: format lint types layers lua spelling docs ## Check format, lint, types, layers, Lua, spelling and the documentation.

.PHONY: format lint types layers lua spelling
format:
	$(venv) $(VENV) lint
	@$(BIN)/ruff format --diff --quiet
lint:
	$(venv) $(VENV) lint
	@$(BIN)/ruff check
types:
	$(venv) $(VENV) lint
	@$(BIN)/python -m mypy
	@$(BIN)/python -m pyright --pythonpath $(BIN)/python
layers:
	$(venv) $(VENV) lint
	@$(BIN)/lint-imports --no-logo
lua:
	$(venv) $(VENV) lint
	@$(BIN)/python tools/lint_lua.py
spelling:
	$(venv) $(VENV) lint
	@$(BIN)/codespell

.PHONY: fix
fix: ## Format the code and repair what ruff can.
	$(venv) $(VENV) lint
	@$(BIN)/ruff check --fix --exit-zero --quiet
	@$(BIN)/ruff format

.PHONY: docs
docs: ## Build the documentation in docs/_build/html (INVENTORIES=1).
	$(venv) $(VENV) docs
	@$(BIN)/python -m sphinx -W -n -q --keep-going docs docs/_build/html

.PHONY: build
build: ## Build and check the sdist and the wheel in dist/.
	$(venv) $(VENV) release
	@rm -rf dist
	@$(BIN)/python -m build --outdir dist .
	@$(BIN)/python -m twine check --strict dist/*

.PHONY: clean
clean: ## Remove all that these targets made.
	rm -rf $(VENV) $(VENV)-[0-9c]* .nox dist docs/_build htmlcov .coverage .coverage.*
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
