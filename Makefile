# Every target runs the tools of .venv; `make install` fills it, and is instant when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := torch==2.13.0
# One process per core, one thread per process: PyTorch would start as many threads as cores in each.
JOBS ?= auto
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 --dist loadfile
CPP_FILES := $(shell find plugins -path plugins/build -prune -o -type f \
	\( -name '*.h' -o -name '*.cu' -o -name '*.cpp' \) -print 2>/dev/null)

# Real street scenes, where this checkout has them beside it; without them everything uses drawn ones.
ifneq ($(wildcard ../shared/data/camvid),)
export NRD_TRT_CAMVID ?= $(abspath ../shared/data/camvid)
endif

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all gpu-check check format bench check-resolution clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Settings: PYTHON=$(PYTHON)  JOBS=$(JOBS)  ARGS=(for test, demo and bench)"
	@echo "  TORCH_INDEX=https://download.pytorch.org/whl/cpu spares the CUDA libraries of PyTorch."

install: $(STAMP)  ## Make .venv with everything for work on this machine

# PyTorch comes first and from its own index, so that no later requirement chooses another build of it.
$(STAMP): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install --editable '.[torch,rtx,cuda,plot,video,serve,dev]'
	touch $@

demo: install  ## Checkpoint to checked engine on this machine, into build/demo/
	$(BIN)/python scripts/demo.py $(ARGS)

test: install  ## Run the suite that needs no GPU
	$(PYTEST) $(ARGS)

test-all: install  ## Run it with every combination of encoder, precision and input form
	$(PYTEST) -m "" $(ARGS)

gpu-check: install  ## Every proof and benchmark that needs an NVIDIA GPU, into build/gpu-check/; exits 2 without one
	$(BIN)/python scripts/gpu_check.py $(ARGS)

check: install  ## Formatting, lint, rooms, types; what CI runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
ifneq ($(CPP_FILES),)
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)
endif

format: install  ## Rewrite the sources in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
ifneq ($(CPP_FILES),)
	$(BIN)/clang-format -i $(CPP_FILES)
endif

bench: install  ## Measure latency on this machine
	$(BIN)/python scripts/benchmark.py $(ARGS)

check-resolution: install  ## Ask the package index whether Python 3.10, 3.11 and 3.12 can install this
	scripts/check_resolution.sh

clean:  ## Remove what was built; .venv stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache plugins/build
	find nrd_trt calibration scripts tests -type d -name __pycache__ -prune -exec rm -rf {} +
