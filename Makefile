# Everything runs from a virtual environment in .venv; a target creates what it needs and re-installs when
# pyproject.toml changes. Where pip looks for packages is up to its own configuration.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --constraint constraints.txt --editable
INSTALLED := $(VENV)/.installed
REQUIREMENTS := pyproject.toml constraints.txt

# The first Python on the path that the package supports; `make PYTHON=… demo` overrides it.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.10 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$python && break; done)

HOST ?= 127.0.0.1
PORT ?= 7860
QUESTION ?= What is the capital of France?

WITH_CUDA := $(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)'

.DEFAULT_GOAL := help
.PHONY: help demo ui test lint typing bench gpu cuda lock clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED)-demo  ## set up, ask the packaged SmolLM2 a question headless, print its answer
	@echo 'Question: $(QUESTION)'
	@printf 'Answer: '
	@$(BIN)/lfx run --format text flows/local_chat.json "$(QUESTION)"

ui: $(INSTALLED)-ui  ## start Langflow with the nodes
	@echo "Langflow opens at http://$(HOST):$(PORT) (stop it with Ctrl-C)"
	$(BIN)/langflow run --host $(HOST) --port $(PORT)

test: $(INSTALLED)-dev  ## set up and run all tests: the unit tests on every core, those with real models two files at a time
	$(BIN)/python -m pytest -n auto --maxprocesses 8 tests/unit
	$(BIN)/python -m pytest -n auto --maxprocesses 2 --dist loadfile --no-loadscope-reorder tests --ignore tests/unit

lint: $(INSTALLED)-dev typing  ## ruff, mypy strict, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.dev $(BIN)/mypy -p lfx_local_runtimes
	$(BIN)/python -m pytest -q tests/unit/test_layers.py

bench: $(INSTALLED)-dev  ## measure against raw llama-cpp-python and Transformers (about 30 minutes); fails if a target is missed
	$(BIN)/python -m benchmarks

gpu: $(INSTALLED)-dev  ## run the tests for CUDA and the benchmarks text and encoders on this machine's card
	@$(BIN)/python -m benchmarks.device
	$(BIN)/python -m pytest -m cuda
	LOCAL_RUNTIMES_FORCE_DEVICE=cuda $(BIN)/python -m benchmarks text encoders

cuda: $(INSTALLED)-dev  ## replace torch and llama-cpp-python in .venv by builds for CUDA; wants NVIDIA's CUDA toolkit
	@command -v nvcc >/dev/null || { echo 'llama.cpp is compiled for CUDA by nvcc, which is not on the PATH. Install the CUDA toolkit, or add its folder bin to the PATH.' >&2; exit 1; }
	$(WITH_CUDA) || { $(PIP) uninstall --yes torch && $(PIP) install --constraint constraints.txt torch; }
	@$(WITH_CUDA) || { echo 'pip has installed a torch without CUDA. Set PIP_INDEX_URL to an index with builds for CUDA.' >&2; exit 1; }
	CMAKE_ARGS='-DGGML_CUDA=on $(CMAKE_ARGS)' $(PIP) install --constraint constraints.txt --force-reinstall --no-deps \
	  --no-cache-dir --no-binary llama-cpp-python llama-cpp-python

lock:  ## write constraints.txt from what is installed now
	@{ echo '# The versions this was developed and tested with, so that set-up is quick and repeatable: `make lock` writes them.'; \
	  echo '# For development and CI; what users may have is said in pyproject.toml.'; \
	  $(PIP) list --format=freeze --exclude-editable | sed -E \
	    -e '/^pip==/d' -e 's/\+.*//' -e '/^torch==/!s/$$/ ; python_version == "3.11"/'; } > constraints.new
	@mv constraints.new constraints.txt

clean:  ## remove the virtual environment, caches and build outputs
	rm -rf $(VENV) .dev .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist artefacts *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# mypy does not see setuptools' package-dir mapping: show it the package as it is imported.
typing:
	@rm -rf .dev
	@mkdir -p .dev/lfx_local_runtimes
	@ln -s $(addprefix ../../,$(wildcard lfx_local_runtimes/*.py) lfx_local_runtimes/langchain lfx_local_runtimes/nodes lfx_local_runtimes/py.typed components flows routes runtimes) .dev/lfx_local_runtimes/

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'No Python 3.10 to 3.13 found. Install one, or name it: make PYTHON=/path/to/python3.11 …' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip

$(INSTALLED)-demo: $(REQUIREMENTS) | $(BIN)/python
	@echo 'Installing. Where llama-cpp-python has no ready build it is compiled, which takes some minutes.'
	$(INSTALL) '.[demo]'
	@touch $@

$(INSTALLED)-ui: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) '.[langflow,demo]'
	@touch $@ $(INSTALLED)-demo

$(INSTALLED)-dev: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) '.[dev]'
	@touch $@ $(INSTALLED)-demo $(INSTALLED)-ui
