# Each target does all the set-up it needs, quickly when there is nothing to do.
#   make quickstart   installs, and trains a ViT on handwritten digits
#   make test         installs, and runs the test suite
#   make slow         the tests that take minutes: processes killed again and
#                     again, real models compiled for TPUs
# One more installs PyTorch beside them, which nothing else needs:
#   make parity       compares models and weights with timm and transformers
PYTHON ?= python3
WORKDIR ?= runs/digits
VENV := .venv
BIN := $(VENV)/bin

# What the parity tests compare with. torch comes first and alone, so that
# nothing asks for another build of it; with their dependencies, timm and
# torchvision would.
TORCH := torch==2.13.0
TRANSFORMERS := transformers==5.23.0
TIMM := timm==1.0.31 torchvision==0.28.0

.PHONY: quickstart test slow parity
.DELETE_ON_ERROR:

quickstart: $(VENV)/.installed
	$(BIN)/python -m vit_jax.main --config=configs/digits.py --workdir=$(WORKDIR)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow --durations=30

parity: $(VENV)/.installed-parity
	$(BIN)/python -m pytest -m parity tests/parity

$(VENV)/.installed: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-parity: Makefile $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet $(TRANSFORMERS)
	$(BIN)/python -m pip install --quiet --no-deps $(TIMM)
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "vit_jax needs Python 3.11 or later; name one with" \
	  "'make PYTHON=python3.12 ...'."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Python's venv module is missing; on Debian: apt install" \
	  "python3-venv."; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
