# make demo and make test work on a fresh machine with Python >= 3.10 and make; both are repeatable.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out/demo
RESULTS ?= results
TOWERS ?= --towers.clip tiny --towers.sam tiny

.PHONY: help demo test slow lint format bench results docs clean

help:
	@echo "make demo    install, then segment unseen scenes with the built-in model: pictures in $(OUT)/"
	@echo "make test    install with the test extras, then the default test suite"
	@echo "make slow    the tests that take minutes"
	@echo "make lint    ruff, mypy, import directions"
	@echo "make format  rewrite the sources in the house format"
	@echo "make bench   measure the full-size model, loading, training and the server on this machine"
	@echo "make results  train and measure what is missing in results/; RESULTS=out/results: everything, from nothing"
	@echo "make docs    the documentation as HTML in docs/_build/"

demo: $(VENV)/.installed
	$(BIN)/promptris demo --out $(OUT)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev
	$(BIN)/promptris bench --model vit-b --random-weights
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/refshapes.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/linears.py
	$(BIN)/python benchmarks/serving.py

# Goes on where it was interrupted; nothing that is there is done again. The towers are the built-in model's, of both
# folders; TOWERS= pretrains those of the first one anew, by its recipe.
results: $(VENV)/.installed-dev
	$(BIN)/promptris ablate model table5 --recipe refshapes-small $(TOWERS) --parallel 2 --out $(RESULTS)/model
	$(BIN)/promptris ablate table1 table2 table3 table4 table5 icl start --parallel 2 --out $(RESULTS)/tables

docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -W -b html docs docs/_build

clean:
	rm -rf $(VENV) out docs/_build

# Installation happens once; it is done again when the package's metadata or the pinned versions change.
# torch comes first and pinned: an open range would bring gigabytes of CUDA to a machine without a GPU.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "promptris needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: $(VENV)/bin/python constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@
