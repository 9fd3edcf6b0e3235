# The environment, the bundle and the checks are made when they are first needed and kept until their sources
# change. `make help` lists the verbs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUNDLE := build/demo-bundle
# Tests run in so many processes; each makes the bundles that its files share.
WORKERS ?= 2
# For test-min, in an environment of its own; without that Python it takes the same as everything else.
MIN_PYTHON ?= 3.10
MIN := .venv-min
# PyPI's torch for Linux brings gigabytes of CUDA. Empty takes it nevertheless; so does a network without this host.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BUNDLE_SOURCES := $(wildcard models/demo/* models/*.py export/*.py export/*/*.py safecode_trt/*.py \
	safecode_trt/ops/*.py safecode_trt/policy/*.py)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check coverage test-min bench wheel train-demo clean

help: ## list the verbs
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

demo: $(VENV)/.demo $(BUNDLE)/bundle.json ## export the demo model, verify it, and let it answer with and without SafeCoDe
	@$(BIN)/safecode-trt verify $(BUNDLE)
	@$(BIN)/safecode-trt demo $(BUNDLE)

test: check ## check, then run the tests
	$(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist loadfile

coverage: $(VENV)/.dev ## run the tests and report which branches they took
	$(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist loadfile --cov --cov-report=term --cov-report=html:build/coverage

test-min: $(MIN)/.dev ## run the tests with the oldest dependencies that pyproject.toml admits
	$(MIN)/bin/python -m pytest -q --numprocesses $(WORKERS) --dist loadfile

check: $(VENV)/.dev ## lint, formatting, types
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

bench: $(VENV)/.dev $(BUNDLE)/bundle.json ## measure the demo bundle on this machine
	$(BIN)/python tools/bench_decode.py

wheel: | $(BIN)/python ## one file of the package in dist/, for machines without the checkout
	@rm -rf build/lib  # what an earlier wheel was made of would go into this one
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/*.whl

train-demo: $(VENV)/.demo ## train models/demo again (hours on two cores; models/demo/README.md says how long it took)
	$(BIN)/python tools/train_demo.py

clean: ## remove what was built and cached, but not the environment
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(BUNDLE)/bundle.json: $(BUNDLE_SOURCES) | $(VENV)/.demo
	$(BIN)/safecode-trt export --model models/demo --output $(BUNDLE) --precision int4 --attention $$($(form)) --overwrite

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@$(call install,cpu$(comma)export)
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@$(call install,dev)
	@touch $@ $(VENV)/.demo

# uv resolves to the lowest version of every direct dependency, which pip cannot.
$(MIN)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -qq --disable-pip-version-check uv
	$(BIN)/uv venv --quiet --clear --python \
		$$($(BIN)/uv python find --no-python-downloads $(MIN_PYTHON) 2>/dev/null || echo $(PYTHON)) $(MIN)
	$(BIN)/uv pip install --quiet --python $(MIN)/bin/python --resolution lowest-direct --editable '.[dev]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit(f"{sys.executable} is Python \
	{v[0]}.{v[1]}; expected 3.10 or later: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# The last ONNX Runtime for Python 3.10 lacks the portable form's operators.
form = $(BIN)/python -c 'import sys; print("portable" if sys.version_info >= (3, 11) else "decomposed")'
comma := ,
reachable = $(BIN)/python -c 'import urllib.request as r; r.urlopen("$(TORCH_INDEX)/torch/", timeout=5)' 2>/dev/null
define install
echo "installing safecode-trt[$(1)] into $(VENV)"; \
index=; if [ -n "$(TORCH_INDEX)" ] && $(reachable); then index="--extra-index-url $(TORCH_INDEX)"; fi; \
$(BIN)/python -m pip install -qq --disable-pip-version-check $$index --editable '.[$(1)]'
endef
