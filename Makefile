# make demo       the whole pipeline on an embedded data set (WORLD=shapes or emoji), ends with pictures and a report
# make test       every gate: format, lint, types, import contracts, tests
# make test-all   the same, and then the tests that take minutes: kills at random, fault servers under load
# make pictures   the pictures of README's "Using the models", from a root that `make demo` has finished (WORLD=emoji for the other)
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

.PHONY: demo pictures test test-all bench environment environment-dev format

demo: environment
	$(BIN)/unclip run --preset $(PRESET_$(WORLD))

ROOT ?= data/$(PRESET_$(WORLD))
MADE := $(ROOT)/pictures
FIRST_shapes := heldout-scene-000001
SECOND_shapes := heldout-scene-000005
FROM_shapes := a large blue circle
TO_shapes := a large red circle
FILL_shapes := a large red star
FIRST_emoji := 1f44d-1f3fd
SECOND_emoji := 1f478-1f3fb
FROM_emoji := princess: light skin tone
TO_emoji := princess: dark skin tone
FILL_emoji := man mage: dark skin tone
PREFIX_emoji := emoji-
FIRST := $(ROOT)/world/images/$(FIRST_$(WORLD)).png
SECOND := $(ROOT)/world/images/$(SECOND_$(WORLD)).png

pictures: environment
	mkdir -p $(MADE)
	$(BIN)/python -c "from PIL import Image; m = Image.new('L', Image.open('$(SECOND)').size); w, h = m.size; m.paste(255, (w // 5, h // 5, w - w // 5, h - h // 5)); m.save('$(MADE)/mask.png')"
	$(BIN)/unclip variations $(FIRST) --root $(ROOT) --num 7 --eta 0.8 --steps 50 --out $(MADE)/variations --overwrite
	$(BIN)/unclip interpolate $(FIRST) $(SECOND) --root $(ROOT) --num 6 --steps 50 --out $(MADE)/interpolate --overwrite
	$(BIN)/unclip edit $(SECOND) --from "$(FROM_$(WORLD))" --to "$(TO_$(WORLD))" --root $(ROOT) --guidance 2 --steps 50 --out $(MADE)/edit --overwrite
	$(BIN)/unclip inpaint $(SECOND) "$(FILL_$(WORLD))" --mask $(MADE)/mask.png --root $(ROOT) --num 6 --steps 25 --resamples 2 --out $(MADE)/inpaint --overwrite
	$(BIN)/unclip reconstruct $(FIRST) --pca 4,8,12,16,24,32,64 --root $(ROOT) --steps 50 --out $(MADE)/reconstruct --overwrite
	for made in variations interpolate edit inpaint reconstruct; do cp $(MADE)/$$made/sheet.png data/pictures/$(PREFIX_$(WORLD))$$made.png; done
	cp $(MADE)/interpolate/animation.gif data/pictures/$(PREFIX_$(WORLD))interpolate.gif

test: environment-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 -m "not slow"

test-all: test
	$(BIN)/pytest -n 2 -m slow

bench: environment-dev $(PEERS)/prior/installed $(PEERS)/decoder/installed $(PEERS)/store/installed
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
