# Two targets do all set-up; both are quick when there is nothing to do.
#   make quickstart   installs, and trains a ViT on handwritten digits
#   make test         installs, and runs the whole test suite
PYTHON ?= python3
WORKDIR ?= runs/digits
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test
.DELETE_ON_ERROR:

quickstart: $(VENV)/.installed
	$(BIN)/python -m vit_jax.main --config=configs/digits.py --workdir=$(WORKDIR)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

$(VENV)/.installed: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "vit_jax needs Python 3.11 or later; name one with" \
	  "'make PYTHON=python3.12 ...'."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Python's venv module is missing; on Debian: apt install" \
	  "python3-venv."; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
