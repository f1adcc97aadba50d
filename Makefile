# `make demo` and `make test` need Python 3.11 or newer with venv, and nothing else.
PYTHON ?= python3
BIN := .venv/bin
SBOM := .venv/sbom

.PHONY: demo run test prove bench bench-short bench-soak bench-peers lint types check fmt sbom lock clean

demo: .venv/ready
	@exec $(BIN)/python opusmax.py demo

run: .venv/ready
	@exec $(BIN)/python opusmax.py serve

# File by file on all cores.
test: .venv/dev
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/dev
	$(BIN)/mypy

# The promises under fault, at full size; takes some minutes. Its last lines are the figures.
prove: .venv/dev
	$(BIN)/python -m pytest prove

# Speed and size beside nginx and others, into bench/RESULTS.md; 11 minutes of an otherwise idle machine with two
# cores. Needs nginx and Go. The short one fails on a gross regression of a ratio, the soak is the part about memory
# over 100,000 requests. Peers are measured if installed.
bench: .venv/ready .venv/bench/harness
	$(BIN)/python -m bench.run

bench-short: .venv/ready .venv/bench/harness
	$(BIN)/python -m bench.run --short

bench-soak: .venv/ready .venv/bench/harness
	$(BIN)/python -m bench.run --soak

bench-peers:
	bench/install_peers

.venv/bench/harness: $(wildcard bench/harness/*) | .venv/ready
	@command -v go > /dev/null || { echo "bench: install Go 1.19 or newer (Debian: golang-go)" >&2; exit 2; }
	cd bench/harness && CGO_ENABLED=0 go build -trimpath -o $(CURDIR)/$@ .

# The README's pictures, taken anew from a running server with sample data. Needs Chromium.
pictures: .venv/dev
	$(BIN)/python -m tools.take_pictures

check: lint types test

fmt: .venv/dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# What runs in production, as CycloneDX in sbom.json: each package with its version, licence, hashes and needs. The
# installed packages know their licences and needs, and the lock knows their hashes; a package that is not in both
# stops it. Two runs write the same bytes.
sbom: $(SBOM)/ready
	$(SBOM)/bin/cyclonedx-py environment --output-reproducible --output-file $(SBOM)/installed.json $(SBOM)/production
	$(SBOM)/bin/cyclonedx-py requirements --output-reproducible --output-file $(SBOM)/locked.json requirements.txt
	$(SBOM)/bin/python tools/add_hashes.py $(SBOM)/installed.json $(SBOM)/locked.json sbom.json

# Pin anew what the files requirements*.in ask for. Run it on the oldest Python that is supported.
lock: .venv/dev
	$(BIN)/pip-compile --quiet --upgrade $(LOCK) --output-file requirements.txt requirements.in
	$(BIN)/pip-compile --quiet --upgrade $(LOCK) --output-file requirements-dev.txt requirements-dev.in
	$(BIN)/pip-compile --quiet --upgrade $(LOCK) --output-file requirements-sbom.txt requirements-sbom.in
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

# Beside the others: what writes the bill is not on it, nor among what users or developers install.
$(SBOM)/ready: requirements.txt requirements-sbom.txt
	rm -rf $(SBOM)
	$(PYTHON) -m venv $(SBOM)
	$(SBOM)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-sbom.txt
	$(PYTHON) -m venv --without-pip $(SBOM)/production
	$(SBOM)/bin/pip --python $(SBOM)/production install --quiet --disable-pip-version-check --require-hashes \
		-r requirements.txt
	@touch $@
