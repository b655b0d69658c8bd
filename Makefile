# kohort: set-up, checks, tests, documents and the demo. Needs python3 (3.11+), make and git; everything else lands in .venv.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export UV_SYSTEM_CERTS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export NO_MKDOCS_2_WARNING := 1
# Hundreds of processes start in the tests: where nothing may be kept, each compiles torch's sources anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup validators check test suite coverage attacks faults fuzz demo docs lock bundle clean
setup: .venv/installed

# uv comes first, by the same hash-pinned lines of requirements.lock; uv then installs exactly that file.
.venv/installed: requirements.lock pyproject.toml kohort/pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kohort needs python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	awk '/^[a-z]/ {on = /^uv==/} on' requirements.lock > .venv/uv.lock
	$(BIN)/python -m pip install --quiet --require-hashes -r .venv/uv.lock
	$(BIN)/uv pip sync --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --quiet \
	  --editable ./kohort --editable .
	touch $@

# Validators of RO-Crate and CITATION.cff: programs of their own, whose requirements contradict ours. Tests that run them
# skip where they are missing.
validators: .venv/validators/installed
.venv/validators/installed: tests/validators.lock .venv/installed
	$(BIN)/uv pip install --python $(BIN)/python --target .venv/validators --no-build-isolation --quiet \
	  --require-hashes -r $<
	touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python docs/promises/count_lines.py --check
	$(BIN)/python -m docs.generator --check
	$(BIN)/python -m benchmarks.report --check

# Side by side, for mypy alone needs a core for a minute; `make check` fails sooner.
test: setup
	$(MAKE) --no-print-directory -j2 check suite

# One thread a process: the workers and their children share the cores. Tests of threads set their own number. Three
# workers, for about a sixth of the time of two is spent waiting, for a daemon's clock or the disk.
suite: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3

# Prints the share of lines that the tests run, by file; child processes are not counted, and nothing depends on it.
coverage: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest --cov --cov-report=term

# Every attack on a running server, behind both fronts, on the round loop and on a hospital's daemon: about 25 minutes on two busy cores.
attacks: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.attacks

# Kills both sides before and after each durable event, and more; about an hour on two busy cores. Its table is
# docs/promises/faults.md; `make test` meets a fixed share of the points.
faults: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --write

# A million inputs to each parser of foreign bytes: hours.
fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --inputs 1000000

demo: setup
	$(BIN)/kohort demo

# build/docs/index.html; `python3 -m http.server -d build/docs` also serves the search.
docs: setup
	$(BIN)/mkdocs build --strict --quiet
	@echo "documents: build/docs/index.html"

# Maintainers: resolve both pyproject.toml (for every platform, no host names in the files). `make lock UPGRADE=--upgrade`
# raises every version; without it a version stays until a requirement asks for another. Each role's lock
# has the versions of requirements.lock.
COMPILE = $(BIN)/uv pip compile --quiet pyproject.toml kohort/pyproject.toml --universal --python-version 3.11 --generate-hashes \
  --no-header --no-annotate --no-emit-index-url
UPGRADE ?=
lock:
	$(COMPILE) --extra site --extra server --extra dev $(UPGRADE) -o requirements.lock
	$(COMPILE) --extra site --constraints requirements.lock -o requirements-site.lock
	$(COMPILE) --extra server --constraints requirements.lock -o requirements-server.lock
	$(BIN)/uv pip compile --quiet tests/validators.in --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url $(UPGRADE) -o tests/validators.lock

# What a hospital or an operator installs without network, for machines like this one: make bundle ROLE=site KEY=signing-key.
# INSTEAD names wheels that take the place of locked ones, such as a torch for processors alone.
ROLE ?= site
bundle: setup
	$(BIN)/python -m deploy.bundle $(ROLE) --out build/bundle/kohort-$(ROLE) $(if $(KEY),--key $(KEY)) \
	  $(foreach wheel,$(INSTEAD),--instead $(wheel))

clean:
	rm -rf .venv
