# `make demo` and `make test` set everything up by themselves: see tools/setup_env.py.
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format clean distclean
MAKEFLAGS += --no-print-directory

# Any Python can look for the right one; PYTHON says which that is, and it need not be able to run the search.
LAUNCHER := $(shell for p in '$(PYTHON)' python3 python3.12 python3.11 python3.10 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
SETUP = $(if $(LAUNCHER),'$(LAUNCHER)',$(error no Python 3 found: sudo apt-get install python3 python3-venv python3-dev, \
	or name one of 3.10, 3.11 and 3.12 with PYTHON=/path/to/python)) tools/setup_env.py
ARGS ?=
# Tests run in so many processes, whole files at a time; 0 is this process alone.
JOBS ?= 2

help:
	@echo 'make demo    set up, then pre-train, fine-tune with and without OLOR, and print what came out'
	@echo 'make test    set up, then all tests; ARGS="-m \"not slow\"" passes arguments to pytest'
	@echo '             in JOBS=2 processes; JOBS=0 runs them one by one'
	@echo 'make lint    set up, then ruff and mypy'
	@echo 'make format  set up, then let ruff mend and format'
	@echo 'make setup   only make .venv, with the stack that requirements/ pins'
	@echo 'make clean   remove caches and built files; make distclean removes .venv too'
	@echo
	@echo 'PYTHON=/path/to/python (3.10, 3.11 or 3.12) is used as it is if it has the packages; else .venv is made'
	@echo 'from it. An active environment that has the packages is used as it is. TORCH_INDEX=URL: where pip gets torch.'

setup:
	@$(SETUP)

demo:
	@$(SETUP) --need demo -- tools/demo/run.py $(ARGS)

test:
	@$(SETUP) --need test -- -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint:
	@$(SETUP) --need lint -- -m ruff check .
	@$(SETUP) --need lint -- -m ruff format --check .
	@$(SETUP) --need lint -- -m mypy olor_mm

format:
	@$(SETUP) --need lint -- -m ruff check --fix .
	@$(SETUP) --need lint -- -m ruff format .

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv.lock olor_mm/.mim
