# Everything is one word. `make help` lists the words; `repro` and `test` set themselves up.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PORT ?= 8000
export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_WAIT_POLICY := PASSIVE
.DEFAULT_GOAL := help
.PHONY: help repro smoke test lab docs docs-serve books plots notebooks clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "make %-11s %s\n", $$1, $$2}'

repro: $(READY)  ## fresh clone to finished report: the whole pipeline at the laptop profile
	python -m hrm.tools.stage lock
	dvc repro book
	python -m hrm.tools.stage lock
	python -m hrm.tools.site --readme

smoke: $(READY)  ## the whole pipeline at the smoke profile, in seconds per stage
	python -m hrm.tools.stage lock
	dvc repro --glob '*@smoke'
	python -m hrm.tools.stage lock

test: $(READY)  ## the whole test suite, the same that CI runs
	python -m pytest

lab: $(READY)  ## JupyterLab with everything installed
	jupyter lab

docs: $(READY)  ## the site, from the notebooks, into _build/html
	python -m hrm.tools.site

docs-serve: docs  ## the site at http://localhost:8000 (PORT=... for another port)
	python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

books: $(READY)  ## two Alice books from Project Gutenberg into data/books, checked; name them in text.sources (needs a network)
	hrm text books

plots: $(READY)  ## the training curves and figures as one page that needs no network, dvc_plots/index.html
	dvc plots show

notebooks: $(READY)  ## for maintainers: format all notebooks, export, run and clean the library, write the README
	ruff format
	nbdev-export
	nbdev-test --save --n-workers 0
	nbdev-clean
	python -m hrm.tools.site --readme

clean:  ## remove what is quickly made again; results and .venv stay
	rm -rf _build _docs _proc dvc_plots data/.partial .pytest_cache .hypothesis *.egg-info
	find hrm nbs tests -name __pycache__ -prune -exec rm -rf {} +

# Set-up, once: made again only when the locked requirements or the package's own settings change.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or later is needed; $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12 ..." % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "no virtual environment: is the venv module installed (Debian: python3-venv)?" >&2; rm -rf .venv; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	@echo "setting up .venv with the locked requirements (once, a few minutes)"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@test -e .git || $(BIN)/dvc config --local core.no_scm true
	@$(BIN)/python -m hrm.tools.stage plots
	@touch $@
