# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check install --quiet
# Also reaches pip's isolated build environments, which -c does not.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

SIDES ?= latentgen,plain,diffusers

.DEFAULT_GOAL := help
.PHONY: help demo gallery test check lint format types bench bench-faults bench-training bench-generation bench-speed bench-approximate bench-throughput bench-gpu install install-dev clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.made
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.made
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed  ## the package and what it needs, in .venv

install-dev: $(VENV)/.installed-dev  ## the same, with the tools for working on it

demo: $(VENV)/.installed  ## install, then draw a lighthouse with the embedded model
	@mkdir -p outputs
	$(BIN)/latentgen generate "a lighthouse at sunset" --seed 42 --guidance 7.5 --output outputs/lighthouse.png --overwrite

gallery: $(VENV)/.installed  ## draw weights/gallery.jsonl anew with the embedded model: a sheet and its manifest
	rm -rf outputs/gallery
	$(BIN)/latentgen generate --prompts weights/gallery.jsonl --output outputs/gallery/
	$(BIN)/python scripts/gallery.py outputs/gallery

test: $(VENV)/.installed-dev  ## install, then run every test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev  ## let ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev  ## pyright, strict on latentgen/
	$(BIN)/pyright

check: lint types test  ## all that CI runs

bench: $(VENV)/.installed-dev  ## time the demo command beside diffusers, and its parts
	$(BIN)/python benchmarks/generate.py

bench-faults: $(VENV)/.installed-dev  ## what a training run survives: kills, full disks, dead processes (half an hour)
	$(BIN)/python benchmarks/faults.py

bench-training: $(VENV)/.installed-dev  ## time a training step against diffusers' network
	$(BIN)/python benchmarks/training.py

bench-speed: $(VENV)/.installed-dev  ## U-Net step and VAE decode beside diffusers (and OpenVINO, where it is installed) at SD 1.5's size
	$(BIN)/python benchmarks/speed.py --sides $(SIDES)

bench-approximate: $(VENV)/.installed-dev  ## what DeepCache, 8 bits and a guidance interval gain, and what they do to pictures
	$(BIN)/python benchmarks/approximate.py

bench-gpu: $(VENV)/.installed-dev  ## pictures a second on a CUDA GPU, compiled or not, beside diffusers
	$(BIN)/python benchmarks/gpu.py

bench-throughput: $(VENV)/.installed-dev  ## pictures a minute, one process or one a core, beside diffusers
	$(BIN)/python benchmarks/throughput.py

bench-generation: $(VENV)/.installed-dev  ## parity with diffusers at full size, samplers' errors, bits, memory (an hour)
	$(BIN)/python benchmarks/parity.py
	$(BIN)/python benchmarks/samplers.py
	$(BIN)/python benchmarks/exact.py
	$(BIN)/python benchmarks/memory.py

clean:  ## remove the environment and caches; pictures in outputs/ stay
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis
