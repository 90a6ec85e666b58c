# make demo and make test do all their own set-up in .venv; needs Python >= 3.10 and, for the C++ kernels, a compiler.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CSRC := $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: demo test test-slow test-all fuzz lint format build gpu bench clean

demo: $(READY)
	$(BIN)/contrastive-i2v demo

# the markers of pyproject.toml that `make test` leaves out; it says how many tests that is
SLOW := triton or emulator or browser or umap or processes or fuzz or slow
# a process a core: one file's tests stay together, and threads of several processes would only wait for each other. A process
# that dies is not started again: xdist gives its test to the next one, which dies too, and in the end waits forever.
XDIST := -n auto --dist loadfile --max-worker-restart 0
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(XDIST)

# what a person waits for: under two minutes on two cores
test: $(READY)
	$(PYTEST) -m "not ($(SLOW))" --durations 5 --durations-min 3

test-slow: $(READY)
	$(PYTEST) -m "$(SLOW)"

test-all: test test-slow

# whatever comes in: every target of tests/fuzz for so many seconds, in turn; ten in `make test-slow`
fuzz: SECONDS := 60
fuzz: SEED := 0
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz --seconds $(SECONDS) --seed $(SEED)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/biome lint --error-on-warnings
	$(BIN)/djlint --lint --quiet contrastive_i2v
	$(BIN)/clang-format --dry-run --Werror $(CSRC) $(wildcard tests/csrc/*.cpp tests/csrc/*.h)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC) $(wildcard tests/csrc/*.cpp tests/csrc/*.h)

build: $(READY)
	$(BIN)/pip install --no-build-isolation --no-deps -e .

# torch goes first and alone, so that nothing else picks its version; the extension is built against it
$(READY): pyproject.toml setup.py CMakeLists.txt $(CSRC)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check "setuptools>=77" wheel cmake ninja "pybind11>=2.13"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -e ".[dev]"
	touch $@

# everything that needs a GPU: build, tests, compute-sanitizer, benchmarks; files in build/gpu or $OUT
gpu:
	PYTHON=$(PYTHON) benchmarks/gpu.sh

bench: $(READY)
	$(BIN)/python -m benchmarks --preset cpu --threads 2
	$(BIN)/python -m benchmarks report

clean:
	rm -rf build dist *.egg-info contrastive_i2v/_C*.so demo
