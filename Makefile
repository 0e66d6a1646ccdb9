# Every target runs the tools of .venv; `make install` fills it, and is instant when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := torch==2.13.0
# One process more than cores, as some tests wait for others' processes, one thread per process: PyTorch would start as
# many threads as cores in each. Files are taken in their order: by their number of tests, the kernels, which are few and
# slow, would come last and alone. Bytecode is written whatever the environment says: hundreds of processes would each
# compile the package.
JOBS ?= auto
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 PYTEST_XDIST_AUTO_NUM_WORKERS=$$(($$(nproc) + 1)) $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder
CPP_FILES := $(shell find plugins scripts/dev -path plugins/build -prune -o -type f \
	\( -name '*.h' -o -name '*.cu' -o -name '*.cpp' \) -print 2>/dev/null)

# Real street scenes, where this checkout has them beside it; without them everything uses drawn ones.
ifneq ($(wildcard ../shared/data/camvid),)
export NRD_TRT_CAMVID ?= $(abspath ../shared/data/camvid)
endif

.DEFAULT_GOAL := help
.PHONY: help install lock demo test test-fast test-all test-lowest fault-gallery models-check soak kills batch-proof triton-server triton-proof scale gpu-check pycuda-check check check-kernels format bench check-resolution plugin-wheels audit release clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Settings: PYTHON=$(PYTHON)  JOBS=$(JOBS)  ARGS=(for test, demo and bench)"
	@echo "  TORCH_INDEX=https://download.pytorch.org/whl/cpu spares the CUDA libraries of PyTorch."

install: $(STAMP)  ## Make .venv with everything for work on this machine

EXTRAS := torch prune openvino rtx plot video serve batch signing dev
comma := ,
LOCKS := scripts/dev/locks
LOCK := $(wildcard $(LOCKS)/py$(shell $(PYTHON) -c 'import platform as p; print(*p.python_version_tuple()[:2], sep=".", end="-" + p.machine())').txt)
# With a lock for this Python and machine, exactly the versions that were tested, by their hashes; else by setup.cfg's ranges.
# PyTorch comes from its own index, before what would choose another build of it; who takes one with CUDA gets its libraries.
$(STAMP): setup.cfg setup.py pyproject.toml $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(LOCK),$(BIN)/python -m pip install --no-deps --require-hashes --requirement $(LOCK))
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install $(if $(LOCK),--no-deps --no-build-isolation) \
		--editable '.[$(subst $() ,$(comma),$(EXTRAS))]'
	touch $@

# What comes with PyTorch's builds for CUDA is not locked: `make install` gets whichever build the index has.
OF_TORCH := torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cudnn-cu13 \
	nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
	nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx
# $(call resolve,EXTRAS,PYTHON VERSION,OPTIONS): write what setup.cfg asks for.
resolve = echo '$(TORCH)' | $(BIN)/uv pip compile --quiet setup.cfg $(addprefix --extra ,$(1)) --constraint - \
	$(addprefix --no-emit-package ,$(OF_TORCH)) --python-version $(2) --python-platform x86_64-manylinux_2_28 \
	--no-annotate --custom-compile-command 'make lock' $(3)
lock: install  ## Choose the newest versions for each Python and write them with their hashes to scripts/dev/locks/
	@mkdir -p $(LOCKS)
	$(foreach python,3.10 3.11 3.12 3.13,$(call resolve,$(EXTRAS),$(python),--upgrade --generate-hashes \
		--output-file $(LOCKS)/py$(python)-x86_64.txt) &&) true

# The page's tests are left out, which want the browser of one version of Playwright, and those of TensorRT-RTX, whose
# versions have each their own surface.
LOWEST := build/lowest
test-lowest: install  ## Run the tests of images, ONNX files and the web on the lowest versions that setup.cfg allows
	mkdir -p $(LOWEST)
	$(call resolve,$(filter-out rtx,$(EXTRAS)),3.11,--resolution lowest-direct --output-file $(LOWEST)/requirements.txt)
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --no-deps $(TORCH) --requirement $(LOWEST)/requirements.txt
	PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n $(JOBS) --dist loadfile $(ARGS) \
		tests/data tests/engine tests/exporting tests/graph tests/serving tests/test_files.py --ignore tests/serving/test_page.py

demo: install  ## Checkpoint to checked engine on this machine, into build/demo/
	$(BIN)/python scripts/demo.py $(ARGS)

# A real Triton server of its own environment; where it cannot be installed, its tests skip.
TRITON := build/triton/bin/tritonserver
$(TRITON): scripts/install_triton.sh setup.cfg
	scripts/install_triton.sh $(PYTHON)
triton-server: $(TRITON)  ## Install the Triton server of the tests into build/triton/

test: install $(TRITON)  ## Run the suite that needs no GPU
	$(PYTEST) $(ARGS)

# Neither trains, nor exports or builds a network of the zoo, nor starts a service.
FAST := tests/data tests/decode tests/engine tests/graph tests/machine tests/calibration \
	tests/test_architecture.py tests/test_errors.py tests/test_files.py tests/test_optional.py tests/test_specs.py
test-fast: install  ## Run the part of it for the inner loop
	$(PYTEST) -m "not all_combinations and not slow" $(FAST) $(ARGS)

test-all: install $(TRITON)  ## Run it with every combination of encoder, precision and input form
	$(PYTEST) -m "" $(ARGS)

SECONDS := 600
fuzz: install  ## Read mutated files by every reader for SECONDS=600 and write docs/hostile.md
	-$(BIN)/python -m pip install --quiet atheris  # not for every Python and machine; without it the page says so
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.hostile docs/hostile.md --seconds $(SECONDS) $(ARGS)

fault-gallery: install  ## Plant every fault of the gallery in every precision and write docs/fault-gallery.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.gallery docs/fault-gallery.md $(ARGS)

models-check: install  ## Build every released configuration in every form and write docs/models-check.md; goes on where it was ended
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.dev.models_check docs/models-check.md $(ARGS)

soak: install  ## Serve for five minutes with viewers, uploads and strangers at once and write docs/soak.md
	OMP_NUM_THREADS=1 $(BIN)/python scripts/dev/soak.py docs/soak.md $(ARGS)

kills: install  ## End every verb that writes with SIGKILL, again and again, and write docs/kills.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.kills docs/kills.md $(ARGS)

batch-proof: install  ## Kill a batch job of 2,000 images three times, measure its overhead and write docs/batch-proof.md
	OMP_NUM_THREADS=1 $(BIN)/python scripts/dev/batch_proof.py docs/batch-proof.md $(ARGS)

scale: install  ## Measure what batch jobs cost beside the network, on a machine at rest, and write docs/scale.md
	OMP_NUM_THREADS=1 $(BIN)/python scripts/dev/scale.py docs/scale.md $(ARGS)

triton-proof: install $(TRITON)  ## Load a Triton server for a minute, kill it under load, measure it and write docs/triton-proof.md
	PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 $(BIN)/python scripts/dev/triton_proof.py docs/triton-proof.md $(ARGS)

# `make gpu-check GPU_PYTHON=python3` does with the packages that are there, where `make install` cannot run.
GPU_PYTHON := $(BIN)/python
GPU := build/gpu-check
GPU_BUILD := plugins/build
# Seconds for the whole of it, where a machine is lent for a time; what does not begin or end in them is not run.
GPU_LIMIT := 86400
# $(call gpu_step,NAME,COMMAND,SECONDS): its output goes to NAME.txt; five minutes at most, unless SECONDS are given; 77
# says that something is missing, 75 that the limit of the whole was reached.
gpu_step = echo "gpu-check: $(1)"; start=$$(date +%s); most=$(or $(3),300); \
	left=$$(($(GPU_LIMIT) - start + $$(cat $(GPU)/start))); \
	if [ $$left -lt 1 ]; then echo "the limit of $(GPU_LIMIT) s was used up" > $(GPU)/$(1).txt; status=75; \
	else timeout $$((left < most ? left : most)) sh -c '$(2)' > $(GPU)/$(1).txt 2>&1; status=$$?; \
		[ $$status -ne 124 ] || [ $$left -ge $$most ] || status=75; fi; \
	echo "$(1) $$status $$(($$(date +%s) - start))" >> $(GPU)/steps
sanitize = tests=$(GPU_BUILD)/nrd_decode/tests; [ -x $$tests/test_kernels ] || { echo "no C++ tests"; exit 77; }; \
	command -v compute-sanitizer || { echo "no compute-sanitizer"; exit 77; }; \
	for test in "test_kernels --small" test_enqueue test_lifecycle test_contexts; do \
		[ ! -x $$tests/$${test%% *} ] || compute-sanitizer --tool $(1) --error-exitcode 99 $(2) $$tests/$$test || \
		{ status=$$?; grep "Device not supported" $(GPU)/$(1).txt && exit 77; exit $$status; }; done

gpu-check: export PATH := $(PATH):/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer
gpu-check: export PYTHONPATH := $(CURDIR):$(PYTHONPATH)
gpu-check: $(if $(GPU_PYTHON:$(BIN)/python=),,install)  ## Every proof and benchmark that needs an NVIDIA GPU, into build/gpu-check/; exits 2 without one
	@rm -rf $(GPU) && mkdir -p $(GPU) && date +%s > $(GPU)/start && $(GPU_PYTHON) scripts/dev/gpu_results.py > $(GPU)/architecture
	@$(call gpu_step,doctor,$(GPU_PYTHON) -c "from nrd_trt.cli.main import run_verb; run_verb(\"doctor\")" --load-plugin --json > $(GPU)/doctor.json)
	@$(call gpu_step,build,command -v nvcc || { echo "no nvcc"; exit 77; }; \
		cmake -S plugins -B $(GPU_BUILD) -DCMAKE_CUDA_ARCHITECTURES=$$(cat $(GPU)/architecture) \
		$(if $(TENSORRT_ROOT),-DTENSORRT_ROOT=$(TENSORRT_ROOT)) && cmake --build $(GPU_BUILD) --parallel $$(nproc))
	@$(call gpu_step,ctest,ctest --test-dir $(GPU_BUILD) --output-on-failure --no-tests=error \
		--output-junit $(abspath $(GPU))/ctest.xml)
	@$(call gpu_step,racecheck,$(call sanitize,racecheck)) & \
		$(call gpu_step,memcheck,$(call sanitize,memcheck,--leak-check full)); wait
	@$(call gpu_step,pytest,$(GPU_PYTHON) -m pytest -m gpu -rs -W default --junitxml=$(GPU)/pytest.xml tests/gpu)
	@$(call gpu_step,bench,$(GPU_BUILD)/nrd_decode_bench --quick --limit 240 --json $(GPU)/bench.json)
	@$(call gpu_step,decode,$(GPU_PYTHON) scripts/benchmark.py --decode --quick --json --markdown $(GPU)/decode.md \
		> $(GPU)/decode.json)
	@$(call gpu_step,initcheck,$(call sanitize,initcheck)) & $(call gpu_step,synccheck,$(call sanitize,synccheck)); wait
	@$(call gpu_step,selftest,$(GPU_PYTHON) -c "from nrd_trt.cli.main import run_verb; run_verb(\"selftest\")" \
		-o $(GPU)/selftest --json > $(GPU)/selftest.json,7200)
	@$(GPU_PYTHON) scripts/dev/gpu_results.py $(GPU)

# PyCUDA has no wheels and wants a toolkit and a driver's library; header packages and the fake driver are enough.
PYCUDA := build/pycuda
$(PYCUDA)/site: setup.cfg
	rm -rf $(PYCUDA) && mkdir -p $(PYCUDA)/lib $(PYCUDA)/source
	$(BIN)/pip install --quiet --no-deps --target $(PYCUDA)/headers nvidia-cuda-runtime nvidia-cuda-profiler-api
	gcc -w -shared -fPIC -pthread -I $(PYCUDA)/headers/nvidia/cu13/include -Wl,-soname,libcuda.so.1 \
		tests/runtime/fake_libcuda.c -o $(PYCUDA)/lib/libcuda.so
	$(BIN)/pip download --quiet --no-deps --no-binary pycuda --dest $(PYCUDA) 'pycuda>=2024.1,<2027'
	tar -xzf $(PYCUDA)/pycuda-*.tar.gz -C $(PYCUDA)/source --strip-components 1
	printf 'CUDA_ENABLE_CURAND = False\nCXXFLAGS = ["-O0", "-w"]\n' > $(PYCUDA)/source/siteconf.py
	CPATH=$(abspath $(PYCUDA))/headers/nvidia/cu13/include LIBRARY_PATH=$(abspath $(PYCUDA))/lib \
		$(BIN)/pip install --quiet --no-deps --target $@ $(PYCUDA)/source mako platformdirs pytools siphash24

pycuda-check: install $(PYCUDA)/site  ## Run the runners' tests by way of PyCUDA, compiled here, on the fake driver
	PYTHONPATH=$(abspath $(PYCUDA))/site $(BIN)/python -m pytest -q -rs -m slow -k pycuda tests/machine/test_cuda.py

check: install  ## Formatting, lint, rooms, types; what CI runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
ifneq ($(CPP_FILES),)
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)
endif

check-kernels: install  ## Execute the kernels' machine code and hold what it costs against the table of budgets
	OMP_NUM_THREADS=1 $(BIN)/python scripts/dev/kernel_budget.py $(ARGS)
	$(BIN)/python scripts/dev/oldest_cuda.py || [ $$? -eq 2 ]  # 2: not run, with the reason

format: install  ## Rewrite the sources in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
ifneq ($(CPP_FILES),)
	$(BIN)/clang-format -i $(CPP_FILES)
endif

bench: install  ## Measure latency on this machine
	$(BIN)/python scripts/benchmark.py $(ARGS)

check-resolution: install  ## Ask the package index whether the documented installs can be made
	$(BIN)/python scripts/dev/check_resolution.py

# HEADERS: folders with the include/ of TensorRT, one for each major (plugins/README.md).
plugin-wheels: install  ## Build and inspect the wheels of the plugin for x86-64 and aarch64, into dist/
	$(BIN)/python scripts/dev/plugin_wheels.py $(HEADERS) $(ARGS)

# Both tools have requirements of their own, which must not move those of the lock.
RELEASE := build/release
$(RELEASE)/bin/pip-audit:
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet 'pip-audit>=2.9,<3' 'cyclonedx-bom>=7,<8'

audit: $(RELEASE)/bin/pip-audit  ## Ask PyPI's database for known vulnerabilities of what the locks name
	$(foreach lock,$(wildcard $(LOCKS)/*.txt),$(RELEASE)/bin/pip-audit --strict --require-hashes --disable-pip --requirement $(lock) &&) true

release: install $(RELEASE)/bin/pip-audit  ## Build sdist, wheel and the list of what they were tested with (SBOM) into dist/
	$(BIN)/python -m build
	$(RELEASE)/bin/cyclonedx-py environment $(BIN)/python --output-reproducible \
		--output-file dist/nrd_trt.cdx.json

clean:  ## Remove what was built; .venv stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache plugins/build
	find nrd_trt calibration scripts tests -type d -name __pycache__ -prune -exec rm -rf {} +
