# `make demo` and `make test` need Python 3.11 or newer with venv, and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo run test prove lint types check fmt lock clean

demo: .venv/ready
	@exec $(BIN)/python opusmax.py demo

run: .venv/ready
	@exec $(BIN)/python opusmax.py serve

test: .venv/dev
	$(BIN)/python -m pytest

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/dev
	$(BIN)/mypy

# The promises under fault, at full size; takes some minutes. Its last lines are the figures.
prove: .venv/dev
	$(BIN)/python -m pytest prove

check: lint types test

fmt: .venv/dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Pin anew what requirements.in and requirements-dev.in ask for. Run it on the oldest Python that is supported.
lock: .venv/dev
	$(BIN)/pip-compile --quiet --upgrade $(LOCK) --output-file requirements.txt requirements.in
	$(BIN)/pip-compile --quiet --upgrade $(LOCK) --output-file requirements-dev.txt requirements-dev.in
LOCK := --generate-hashes --strip-extras --allow-unsafe \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Two stages, so that a user does not install what only developers need.
.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

.venv/dev: .venv/ready requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@
