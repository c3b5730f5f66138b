.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Where PYTHONDONTWRITEBYTECODE is set, every process would compile TensorFlow, Keras and Ray again:
# 10 s instead of 3 s to import Keras.
COMPILE := $(BIN)/python -m compileall -q -q -j 0

.PHONY: help setup browser demo test test-fast test-soak check bench bench-training bench-long bench-page bench-scale

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1 ~/' | column -t -s '~'

setup: $(READY) browser ## Create .venv with the locked dependencies and cvbatch

browser: # for the tests of the HTML report; without it they are skipped, with a message
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	  && { apt-get install -qq -y chromium || { apt-get update -qq && apt-get install -qq -y chromium; }; } \
	  >/dev/null 2>&1; } || echo "chromium is not installed: tests/report/test_browser.py will be skipped"

$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(COMPILE) .venv/lib
	touch $(READY)

demo: $(READY) ## Run the prediction job on a small rendered archive; print the path of the result
	$(BIN)/cvbatch demo --out demo-out

# Three processes on two cores: whole jobs wait for process starts longer than they compute. The tests
# of a file share fixtures, so they run in one process.
PYTEST := $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

test: setup ## Run every test
	$(COMPILE) cvbatch
	$(PYTEST) --durations=25

test-fast: setup ## Run the tests without Ray, TensorFlow, servers, browsers and other processes
	$(PYTEST) -m "not ray and not keras and not process and not soak"

test-soak: setup ## Run the tests that take minutes: repeated kills and storage failures
	$(BIN)/pytest -m soak

check: setup ## Check lint, formatting, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## Compare prediction with the limit and with peers; print the table
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps daft==0.7.26
	$(BIN)/python -m benchmarks.run --json benchmarks/results/predict.json

bench-training: setup ## Compare the training step with keras.fit; print the table
	$(BIN)/python -m benchmarks.training --json benchmarks/results/training.json

bench-long: setup ## Run 100,000 images; check that memory, handles and threads do not grow
	$(BIN)/python -m benchmarks.long_run --json benchmarks/results/long_run.json

bench-scale: setup ## Plan archives of increasing size; extrapolate to 10⁹ images
	$(BIN)/python -m benchmarks.scale --json benchmarks/results/scale.json

bench-page: setup ## Write the HTML report of 1,000,000 rows; print seconds, memory, size
	$(BIN)/python -m benchmarks.page --folder /tmp/cvbatch-page --json benchmarks/results/page.json
