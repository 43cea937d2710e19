# What you can do here. Every target does its own set-up; the second run of any is quick. `make help` lists them.
#
#   PYTHON=python3.12       the interpreter that .venv is made with (default: the first of python3, python3.13 ... that fits)
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                           on Linux without a GPU: the CPU build of torch, which saves 3 GB of CUDA libraries
#   ARGS='...'              handed on: make demo ARGS='--workers 3', make test ARGS='-k crash -x', make bench ARGS=noop,
#                           make demo-preemption ARGS='--quick --picture preemption.png'

PYTHON ?=
TORCH_INDEX ?=
ARGS ?=
SEED ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH_FLAGS := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PYTEST_JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo demo-preemption test soak sim check lint types imports layout fix bench gpu model picture diagrams lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.run ## verify bundled claims with a bundled model on two workers, one of which is killed
	@$(BIN)/pilotlight demo $(ARGS)

demo-preemption: .venv/.dev ## four ways to verify the same claims on preempted workers; ten minutes (ARGS=--quick: two)
	@$(BIN)/python -m benchmarks.preemption $(ARGS)

test: .venv/.dev ## every test that needs no GPU
	@$(BIN)/python -m pytest -n $(PYTEST_JOBS) -m 'not gpu' $(ARGS)

soak: .venv/.dev ## a lasting pool under work and random kills (ARGS='--minutes 60 --seed 7')
	@$(BIN)/python -m tests.faults.soak $(ARGS)

sim: .venv/.dev ## random worlds in virtual time, a minute of them (SEED=17 replays one; ARGS='--seeds 10000')
	@$(BIN)/python -m pilotlight.sim $(SEED) $(ARGS)

check: lint types imports layout ## style, types, who may import whom, the house rules (`make -k check` shows all findings)

lint: .venv/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: .venv/.dev
	@$(BIN)/basedpyright --project pyproject.toml

imports: .venv/.dev
	@$(BIN)/lint-imports

layout: .venv/.dev
	@$(BIN)/python -m pytest -q tests/test_layout.py

fix: .venv/.dev ## let ruff repair and format what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: .venv/.dev ## benchmarks/bench_*.py one after another; figures go to bench-results/
	@$(BIN)/python tools/bench.py $(ARGS)

gpu: ## tests and benchmarks that need a GPU, with the interpreter that has CUDA torch; needs no network
	@PYTHONPATH="src:.:$$PYTHONPATH" $(or $(PYTHON),python3) tools/gpu.py $(ARGS)

model: .venv/.run ## train the bundled model anew (seeded; minutes on two cores)
	@$(BIN)/python training/train.py --out src/pilotlight/factcheck/assets/tiny-verifier $(ARGS)
	@$(BIN)/python training/make_claims.py --out src/pilotlight/factcheck/assets/claims.jsonl

picture: .venv/.dev ## draw docs/images/demo.svg from a real run of the demo
	@$(BIN)/python tools/draw_demo.py

diagrams: .venv/.run ## draw the state diagrams of docs/architecture.md from core/transitions.py
	@$(BIN)/python tools/draw_transitions.py

lock: .venv/.dev ## resolve requirements/*.txt anew, for Python 3.11 to 3.13 on any system
	@tools/lock.sh

clean: ## remove everything that can be made again
	rm -rf .venv build dist pilotlight-demo.jsonl* preemption.svg bench-results .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up --------------------------------------------------------------------------------------------------

.venv/pyvenv.cfg:
	@tools/make_venv.sh $(PYTHON)

# torch comes first and by itself: which build fits depends on the machine, and a resolver must not choose another.
.venv/.run: .venv/pyvenv.cfg pyproject.toml requirements/torch.txt requirements/lock.txt
	@echo "Installing into .venv (once; torch is the large one) ..."
	@$(PIP) install $(TORCH_FLAGS) -r requirements/torch.txt -c requirements/lock.txt
	@$(PIP) install -r requirements/lock.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.dev: .venv/.run requirements/dev.txt
	@$(PIP) install -r requirements/dev.txt
	@touch $@
