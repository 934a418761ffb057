# volseg in two commands: `make demo` and `make test`. Both set up .venv by themselves, once;
# all they ask of the machine is make and Python 3.11 or newer.
#
# What you may override:
#   make test PYTHON=/opt/python3.12/bin/python3     which Python builds the environment
#   make test VENV=/tmp/venv                         where the environment lies
#   make test ARGS="tests/io -x"                     what pytest runs
#   make demo VOLSEG_TORCH_INDEX=https://...         where the CPU build of torch comes from
#
# Which torch: PyPI's Linux build brings several GB of CUDA libraries. On Linux without an NVIDIA driver the CPU
# build is taken instead: from a wheel that pip is told of on this machine (pip's `find-links`), else from
# PyTorch's own CPU index. Where neither answers, and on macOS or with an NVIDIA driver, PyPI's build is right.

SHELL := /bin/sh
VENV ?= .venv
PYTHON ?=
ARGS ?=
VOLSEG_TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN = $(VENV)/bin
READY = $(VENV)/.ready
CANDIDATES = $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format clean bench bench-lesions bench-resample study study-small

help: ## this list
	@echo "volseg: make <target>"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)$$/  \1	\2/p' Makefile

demo: $(READY) ## make a phantom patient, run the main job on it, say where the report lies
	$(BIN)/volseg demo

test: $(READY) ## run the tests (those on real volumes skip themselves where ../shared is absent)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile $(ARGS)

lint: $(READY) ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) ## every speed and memory ratio: kernels, network, engine, growth (an hour on 2 cores; PARTS="scan conv")
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python tests/benchmarks/bench_speed.py $(if $(PARTS),--parts $(PARTS))
	$(BIN)/python tests/benchmarks/bench_resample.py

bench-lesions: $(READY) ## lesions found on held-out synthetic and real volumes (needs ../shared; minutes)
	$(BIN)/python tests/benchmarks/bench_lesions.py --beside bone_ct_mask_rcnn_detection
	$(BIN)/python tests/benchmarks/bench_lesions.py --bundle bone_ct_mask_rcnn_detection
	$(BIN)/python tests/benchmarks/bench_lesions.py --bundle bmseg_bmsmm_net_segmentation
	$(BIN)/python tests/benchmarks/bench_lesions.py --bundle bmseg_mfp_deeplabv3plus_segmentation

bench-bmseg: $(READY) ## BMSMM-Net and MFP-DeepLabv3+ module by module, on synthetic slices (goes on; SIZE=tiny|small|large)
	$(BIN)/python tests/benchmarks/bench_bmseg.py --size $(or $(SIZE),small)

bench-resample: $(READY) ## volseg's resampling against MONAI's on a chest-sized volume (minutes)
	$(BIN)/python tests/benchmarks/bench_resample.py

study-small: $(READY) ## train at site B, test once at site A, on phantoms: 3 networks, 1 seed (6 minutes on 2 free cores; CI runs it)
	$(BIN)/python tests/benchmarks/study.py --scale small

study: $(READY) ## the same with 3 seeds, more steps and patients, in ../shared's CTs if they are there (within the hour; resumable)
	$(BIN)/python tests/benchmarks/study.py --scale full --shared ../shared

format: $(READY) ## let ruff format the code and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment, caches, builds and the demo's output
	rm -rf $(VENV) build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find volseg tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@for candidate in $(CANDIDATES); do \
	  if "$$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "volseg: building $(VENV) with $$candidate ($$("$$candidate" -V))"; \
	    exec "$$candidate" -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo "volseg: no Python 3.11 or newer with its venv module among: $(CANDIDATES)." >&2; \
	echo "  Debian, Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.12" >&2; \
	echo "  or name one:    make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	exit 1

# The stamp depends on pyproject.toml: a changed dependency is installed by the next `make`, code needs nothing (editable).
# Torch alone comes first, without its dependencies: the second pip finds it satisfied and adds the rest from PyPI.
$(READY): pyproject.toml | $(BIN)/python
	@wanted=$$($(BIN)/python -c 'import tomllib; \
	  needs = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]; \
	  print(next(need for need in needs if need.startswith("torch>")))') || exit 1; \
	pip="$(BIN)/python -m pip install --disable-pip-version-check"; \
	if $(BIN)/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then \
	  :; \
	elif [ "$$(uname -s)" != Linux ] || nvidia-smi >/dev/null 2>&1; then \
	  echo "volseg: torch comes from PyPI"; \
	elif $$pip --quiet --no-index --no-deps "$$wanted" 2>/dev/null; then \
	  echo "volseg: torch comes from a wheel on this machine"; \
	elif $$pip --no-deps --timeout 10 --retries 0 --index-url $(VOLSEG_TORCH_INDEX) "$$wanted"; then \
	  echo "volseg: torch comes from $(VOLSEG_TORCH_INDEX)"; \
	else \
	  echo "volseg: no CPU build of torch within reach; PyPI's comes instead, with several GB of CUDA libraries" >&2; \
	fi
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)
