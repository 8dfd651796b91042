# make demo, make test: each sets up what it needs; make setup alone does only that.
PYTHON ?= python3
SGLANG ?= 0.5.16
VENV ?= .venv
# The Triton that an SGLang release brings on a GPU; torch's CUDA builds ask for others, its CPU builds for none.
TRITON_0.5.16 := 3.6.0
TRITON_0.5.23 := 3.8.0
BIN := $(VENV)/bin
# The stamp names the versions; it is re-made when an input below changed.
STAMP := $(VENV)/.made-for-sglang-$(SGLANG)
GPU := $(wildcard /dev/nvidiactl /dev/dxg)
# Without a GPU, three processes share the tests, see tests/conftest.py; PARALLEL= is for one process.
ifeq ($(GPU),)
PARALLEL ?= -n 3 --no-loadscope-reorder
endif

.PHONY: setup demo test lint drift clean

setup: $(STAMP)

$(STAMP): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "lim-sglang: error: $(PYTHON) is not Python 3.11 to 3.13; name one with make PYTHON=python3.11" >&2; exit 1; }
	@echo "setting up $(VENV) for SGLang $(SGLANG) (a few minutes, once)"
	$(PYTHON) -m venv --clear $(VENV)
ifeq ($(GPU),)
	$(BIN)/python -m pip install -q -e '.[dev,cpu-host-$(subst .,-,$(SGLANG))]'
	$(BIN)/python -m pip install -q --no-deps sglang==$(SGLANG) torchvision==0.28.0 triton==$(TRITON_$(SGLANG))
	$(BIN)/python -m lim_cpu_host enable
else
	$(BIN)/python -m pip install -q sglang==$(SGLANG)
	$(BIN)/python -m pip install -q -e '.[dev]'
endif
	@rm -f $(VENV)/.made-for-*
	@touch $@

demo: setup
	@exec $(BIN)/lim-sglang demo $(ARGS)

# One thread a process: threads that wait for each other crawl on shared cores.
test: setup
	$(if $(PARALLEL),OMP_NUM_THREADS=1) $(BIN)/python -m pytest $(PARALLEL) $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The names of SGLang that the plugin relies on, in every release on the index.
drift: setup
	$(BIN)/python .ci/drift.py

clean:
	rm -rf .venv .venv-*
