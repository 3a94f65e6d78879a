# Everything is one word. `make help` lists the words; `repro` and `test` set themselves up.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PORT ?= 8000
export PATH := $(CURDIR)/$(BIN):$(PATH)
# As `hrm` does, for programs that import torch before it.
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 5000
.DEFAULT_GOAL := help
.PHONY: help try repro smoke test lab docs docs-serve books plots notebooks clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "make %-11s %s\n", $$1, $$2}'

try: $(READY)  ## one puzzle, solved while you watch by the model that comes with the package
	hrm try

repro: $(READY)  ## fresh clone to finished report: the whole pipeline at the laptop profile
	python -m hrm.tools.stage dvc repro book
	python -m hrm.tools.site --readme

smoke: $(READY)  ## the whole pipeline at the smoke profile, in seconds per stage
	python -m hrm.tools.stage dvc --profile smoke

test: $(READY)  ## the whole test suite, the same that CI runs, on all cores
	python -m pytest -n logical --maxprocesses 8 --dist loadscope --no-loadscope-reorder

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
	HRM_DTYPE=float32 nbdev-test --save --n-workers 0
	nbdev-clean
	python -m hrm.tools.site --readme

clean:  ## remove what is quickly made again; results and .venv stay
	rm -rf _build _docs _proc dvc_plots data/.partial .pytest_cache .hypothesis *.egg-info
	find hrm nbs tests -name __pycache__ -prune -exec rm -rf {} +

# Set-up, once: made again only when the locked requirements or the package's own settings change.
$(READY): .venv/.locked pyproject.toml
	$(PIP) --no-deps --no-build-isolation -e .
	@test -e .git || $(BIN)/dvc config --local core.no_scm true
	@$(BIN)/python -m hrm.tools.stage plots
	-@$(BIN)/hrm try >/dev/null  # what is compiled on first use is kept: the first try is as quick as the second
	@touch $@

# The locked requirements: by uv, which is some five times as fast and is in the lock itself, and by pip where uv cannot.
.venv/.locked: requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or later is needed; $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12 ..." % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "no virtual environment: is the venv module installed (Debian: python3-venv)?" >&2; rm -rf .venv; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	@echo "setting up .venv with the locked requirements (once, a few minutes)"
	@command -v uv >/dev/null || $(PIP) "$$(grep -o '^uv==[^ ]*' $<)" || true
	@set -a; eval "$$($(AS_PIP))"; uv pip install --quiet --python $(BIN)/python --compile-bytecode -r $< || \
		{ echo "uv could not; pip does it" >&2; $(PIP) -r $<; }
	@touch $@

PIP = $(BIN)/python -m pip install --disable-pip-version-check --quiet
# uv reads none of pip's settings, and so would take other builds of the same versions (torch's with CUDA, for one). Those
# that say where packages come from are handed on, the environment's over those of files, and the best of all places wins.
AS_PIP = echo UV_INDEX_STRATEGY=unsafe-best-match; $(BIN)/python -m pip config list | sed -nE \
	-e 's/=(.)\\n/=\1/; s/\\n/ /g; s/^global\./1 /; s/^install\./2 /; s/^:env:\./3 /' -e "/='.*'\$$/!d" \
	-e 's/^(.) index-url=/\1 UV_DEFAULT_INDEX=/p; s/^(.) extra-index-url=/\1 UV_INDEX=/p; s/^(.) no-index=/\1 UV_NO_INDEX=/p' \
	-e 's/^(.) find-links=/\1 UV_FIND_LINKS=/p; s/^(.) constraint=/\1 UV_CONSTRAINT=/p; s/^(.) cert=/\1 SSL_CERT_FILE=/p' | sort | cut -c3-
