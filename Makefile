# Two commands: `make study` and `make test`. Needs Python 3.11 or newer, make and git; everything else goes into .venv.
# Paths stay relative, so that the folder may lie anywhere, also under a name with spaces.

PYTHON ?= python3
ENV = .venv
BIN = $(ENV)/bin/python
BATCHES = notebooks/batches
COMPILE = $(if $(shell command -v c++),--compile)
NOTEBOOKS = $(wildcard notebooks/*.ipynb notebooks/exercises/*.ipynb)
FAST = mixers mixer_use models evaluate params train documents floors

.PHONY: study test check gpu grid notebooks readme book lab lock clean env

study: env  ## the whole study on the built-in images: five notebooks, a grid of 15 trainings, tables and a book of HTML pages
	$(BIN) -m rmlib batch $(BATCHES)/quick.yaml

test: env  ## pytest, and nbval over the notebooks
	$(BIN) -m pytest tests notebooks --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --nbval-lax --nbval-current-env --nbval-cell-timeout=300 --nbval-kernel-startup-timeout=180

check: env  ## before a commit: format, lint, spelling, types, and the fast tests
	$(BIN) -m ruff format --check rmlib tests
	$(BIN) -m ruff check rmlib tests
	git ls-files -z | xargs -0 $(BIN) -m codespell_lib
	$(BIN) -m mypy rmlib
	$(BIN) -m pytest -q --numprocesses 2 -m "not slow" $(wildcard $(FAST:%=tests/test_%.py))

MINUTES =
gpu: env  ## on a GPU: its tests, what is fast there, then `make grid`; MINUTES=25 limits the grid alone: what trains then stops with a checkpoint
	$(BIN) -m pytest tests -m cuda
	$(BIN) -m rmlib bench --device cuda --only mixers loader training maps --rounds 30 $(COMPILE) --out results/bench-cuda.md
	$(MAKE) grid

grid: env  ## the paper's CIFAR-10 grid, or what is left of it; stopped by the limit it ends well, and the same command goes on
	$(BIN) -m rmlib batch $(BATCHES)/cifar10.yaml --out results/cifar10 $(COMPILE) $(if $(MINUTES),--max-minutes $(MINUTES)) || test $$? -eq 75

notebooks: env  ## run every notebook with its defaults and store the outputs in it
	$(BIN) -m rmlib.study.batch.notebooks refresh $(NOTEBOOKS)

readme: env  ## make picture and tables of all documents anew, from records
	$(BIN) -m rmlib.study.figures results
	$(BIN) -m rmlib.study.playground notebooks/playground.html
	git grep -lz '^<!-- report ' -- '*.md' | xargs -0 -n 1 $(BIN) -m rmlib report --into

book: env  ## the book of the committed notebooks and records, in runs/book
	$(BIN) -m rmlib report results/cifar10-small --book --out runs/book

lab: env  ## JupyterLab on the notebooks
	$(BIN) -m jupyter lab notebooks

lock: env  ## pin what is installed now, by name and version alone
	$(BIN) -m pip freeze --exclude-editable --exclude rmlib > constraints.txt

env: $(ENV)/ready

$(ENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is older: try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "this Python has no venv module: install it (on Debian and Ubuntu the package python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(ENV)
	$(BIN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,dev]'
	touch $(ENV)/ready

clean:
	rm -rf runs
