PYTHON ?= python3
BIN := .venv/bin
RUN ?= run
# One thread per test process: the suite runs one process per core.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
WORKERS ?= auto
EXTRAS ?= test
SLOW := model/build/test_blocks storage/test_claims explain/test_explainer model/build/test_families model/autodiff/test_networks model/build/test_derive line/test_line system/test_line_killed test_docs model/build/test_load_onnx explain/test_batching system/test_store_faults

.PHONY: help run test test-slow test-all check docs release-check format clean install install-test

help:  ## say what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */make \1\t/' | expand -t 18

run: install  ## install, then inspect, explain and report a sample line (everything lands in run/)
	@$(BIN)/python examples/run.py --out $(RUN)

test: install-test  ## install, then run the tests (about ten minutes with the installing)
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-slow: install-test  ## run the slow tests that need no Prefect server: families, damaged files, kill -9
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n $(WORKERS) -m slow $(addprefix tests/,$(addsuffix .py,$(SLOW)))

test-all: install-test  ## run every test, the slow ones too
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n $(WORKERS)

check: install-test  ## lint, spelling, types, import contract, docs freshness
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/reference.py --check

docs: install-test  ## build the documentation site into build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

release-check:  ## build wheel and sdist, install the wheel in an empty environment, check both for an upload
	@$(PYTHON) deploy/install.py --extras release
	@$(BIN)/python deploy/release_check.py

format: install-test  ## put the code into its form and write the generated docs anew
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/reference.py

clean:  ## remove what `run` and the tools left; the environment stays
	rm -rf $(RUN) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

install:
	@$(PYTHON) deploy/install.py

install-test:
	@$(PYTHON) deploy/install.py --extras $(EXTRAS)
