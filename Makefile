# make generate                      images from the checkpoint that ships inside the package, in outputs/
# make generate PROMPT="a red bag"   the same for one's own prompt
# make test                          the tests, without the slow ones; make test-all runs every one
# make lint                          style, annotations, layout
# make docs                          the pages and a reference of every module, in site/
# Each command makes .venv first; it is remade only when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# More threads than cores make torch slower.
OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS

PROMPT ?=
PROMPTS := "a photo of a t-shirt" "a photo of trousers" "a photo of a pullover" "a photo of a dress" \
  "a photo of a coat" "a photo of a sandal" "a photo of a shirt" "a photo of a sneaker" "a photo of a bag" \
  "a photo of an ankle boot"
NUM_IMAGES ?= 8
OUTPUT ?= outputs
export PROMPT NUM_IMAGES OUTPUT

.PHONY: install generate test test-all lint docs clean help

help:
	@sed -n 's/^# //p' $(firstword $(MAKEFILE_LIST)) | head -6

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	  "error: Python 3.11 or newer is needed (diffusers 0.42 needs it); this is %d.%d. Say which with PYTHON=python3.12" % v[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,docs]"
	@touch $@

generate: $(STAMP)
	@if [ -n "$$PROMPT" ]; then set -- "$$PROMPT"; else set -- $(PROMPTS); fi; \
	$(BIN)/guided-diffusers generate --num-images "$$NUM_IMAGES" --output "$$OUTPUT" -- "$$@"

# The tests' models are so small that a second thread only costs: a process for each core, a file at a time.
test test-all: export OMP_NUM_THREADS := 1

test: $(STAMP)
	$(BIN)/python -m pytest -q --numprocesses auto --dist loadfile -m "not slow"

test-all: $(STAMP)
	$(BIN)/python -m pytest -q --numprocesses auto --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/mkdocs build

clean:
	rm -rf $(VENV) outputs site build dist .pytest_cache .ruff_cache
