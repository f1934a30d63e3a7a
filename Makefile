# make demo       the whole pipeline on an embedded data set (WORLD=shapes or emoji), ends with pictures and a report
# make test       every gate: format, lint, types, import contracts, tests
# make test-all   the same, and then the tests that take minutes: kills at random, fault servers under load
# make bench      speed and memory of each hot path beside its peers (ONLY="prior" for one of them)

PYTHON ?= python3
WORLD ?= shapes
PRESET_shapes := demo
PRESET_emoji := emoji
VENV := .venv
BIN := $(VENV)/bin
PEERS := $(VENV)/peers

export DO_NOT_TRACK := 1
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: demo test test-all bench environment environment-dev format

demo: environment
	$(BIN)/unclip run --preset $(PRESET_$(WORLD))

test: environment-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist loadgroup -m "not slow"

test-all: test
	$(BIN)/pytest -n 2 --dist loadgroup -m slow

bench: environment-dev $(PEERS)/prior/installed $(PEERS)/decoder/installed
	$(BIN)/python -m tests.benchmarks --peers $(PEERS) $(ONLY)

format: environment-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

environment: $(VENV)/installed
environment-dev: $(VENV)/installed-dev

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "unclip needs Python 3.11 or newer; give another with make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# what only a benchmark compares with wants older packages than we have, so it lives outside of the environment
$(PEERS)/%/installed: tests/benchmarks/peers/%.txt $(VENV)/installed-dev
	rm -rf $(@D)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(@D) --requirement $<
	touch $@
