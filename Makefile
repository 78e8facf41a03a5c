# make demo   the whole pipeline on small videos that it draws itself
# make test   linters, type checks and every test that needs no GPU
# make lint   linters and type checks alone
# make bench  the benchmarks that need nothing but the code
# make clean  removes what these made
#
# All work in a virtual environment of their own. PYTHON=/path/to/python3 chooses the interpreter it is made with.

VENV ?= .venv
BIN := $(VENV)/bin
MINIMUM := 3, 11
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < ($(MINIMUM)))' 2>/dev/null && echo $$p && break; done)

# vLLM for CPUs wants the CPU build of PyTorch, which PyPI does not hold: PyTorch's own index does, where pip needs one.
TORCH_CPU := https://download.pytorch.org/whl/cpu
PIP_TEST = $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'

.PHONY: demo test lint bench clean

demo: $(VENV)/installed
	$(BIN)/hicom demo

test: lint
	$(BIN)/python -m pytest -m "not gpu"

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed-test
	$(BIN)/python benchmarks/scan.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/two_turns.py

clean:
	rm -rf $(VENV) demo-run build dist .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find pipeline tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The packages change with pyproject.toml alone: the code itself is used where it lies.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	@echo "Installing the base packages into $(VENV); a minute or two."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-test: pyproject.toml | $(BIN)/python
	@echo "Installing the packages of the tests, PyTorch and vLLM for CPUs among them, into $(VENV): 4 GB, a few minutes."
	@$(PIP_TEST) 2>$(VENV)/pip.log || $(PIP_TEST) --extra-index-url $(TORCH_CPU) || { cat $(VENV)/pip.log >&2; exit 1; }
	@$(BIN)/python tests/cpu_wheels/cpu_wheels.py
	@touch $@ $(VENV)/installed

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < ($(MINIMUM)))' 2>/dev/null \
		|| { echo "make: $(PYTHON) is not Python 3.11 or newer; name another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "make: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu install python3-venv" >&2; exit 1; }
