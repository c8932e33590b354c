# Every target sets up what it needs (a virtual environment in .venv with pinned versions) and says
# what it wrote where. Needs python3.11 or newer with venv, and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
RESULTS := runs
SUITE := digits-scale
RUNS := 4000
MINUTES := 15
TORCH := $(shell grep '^torch==' constraints.txt)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := src tests benchmarks examples tools docs/conf.py docs/generate.py docs/figures

.DEFAULT_GOAL := help
.PHONY: help install install-dev reproduce test fuzz audit chaos slurm-test ddp-test lint types docs figures check \
  format readme clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) with $(PYTHON) (once; downloads torch and a few small packages) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@$(PIP) --build-constraint constraints.txt $(TORCH) --editable '.[all]'
	@touch $@
	@echo "Installed equiscale in $(VENV); '$(BIN)/equiscale --help' shows what it does."

$(VENV)/installed-dev: $(VENV)/installed
	@echo "Adding the tools for tests and checks ..."
	@$(PIP) --group dev
	@touch $@

install: $(VENV)/installed ## Set up .venv

install-dev: $(VENV)/installed-dev ## Set up .venv with the tools for tests and checks

reproduce: $(VENV)/installed ## Prepare data, train, show the table, write the report (SUITE, RESULTS)
	@$(BIN)/equiscale reproduce $(SUITE) --results $(RESULTS)
	@$(BIN)/equiscale table $(SUITE) --results $(RESULTS)
	@$(BIN)/equiscale report $(SUITE) --results $(RESULTS)

test: $(VENV)/installed-dev ## Run all tests and doctests
	@$(BIN)/pytest --numprocesses auto --dist loadfile --quiet

fuzz: $(VENV)/installed-dev ## Let a fuzzer that watches coverage try every parser (RUNS inputs each, MINUTES in all)
	@$(PIP) --group fuzz
	@$(BIN)/python -m tests.fuzz.long --runs $(RUNS) --minutes $(MINUTES)

audit: $(VENV)/installed-dev ## Compare the pinned versions with the published advisories (needs the network)
	@$(PIP) --group audit
	@$(BIN)/pip-audit --strict --disable-pip --no-deps --progress-spinner off --requirement constraints.txt || \
	  { echo "Not clean: a version has an advisory, or the advisories of PyPI could not be reached; see above."; exit 1; }

chaos: $(VENV)/installed ## Kill, stop and starve a small sweep, and compare with a quiet one (under ten minutes)
	@$(BIN)/python benchmarks/chaos.py --output $(RESULTS)/chaos.json

slurm-test: $(VENV)/installed-dev ## A disturbed sweep on a real Slurm of two nodes (minutes; needs its packages)
	@CI=true EQUISCALE_SLURM_TEST=long $(BIN)/pytest --numprocesses 0 --quiet --durations 5 tests/cluster

ddp-test: $(VENV)/installed-dev ## Run the tests of one training over several processes, from the command line too
	@EQUISCALE_DDP_TESTS=1 $(BIN)/pytest --quiet -n 0 tests/nn/test_sync_norm.py tests/train/test_distributed.py tests/train/ddp

lint: $(VENV)/installed-dev ## Check format and style
	@$(BIN)/ruff format --check --quiet $(SOURCES)
	@$(BIN)/ruff check --quiet $(SOURCES)
	@echo "Format and style are clean."

types: $(VENV)/installed-dev ## Check types, strictly
	@$(BIN)/mypy

docs: $(VENV)/installed-dev ## Build the documentation in docs/_build, and run the examples; warnings are errors
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build
	@echo "Wrote docs/_build/index.html"

figures: $(VENV)/installed ## Draw the figures of the documentation anew
	@$(BIN)/python docs/figures/draw.py
	@echo "Wrote docs/figures/*.svg"

check: lint types test ## Everything that must hold before a change lands

format: $(VENV)/installed-dev ## Format the code
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix $(SOURCES)

readme: $(VENV)/installed ## Write the README's tables from the committed records, and the catalogue
	@$(BIN)/equiscale list --into docs/catalogue.md
	@$(BIN)/equiscale table mnist-scale --results results --epochs 30-60 --into README.md
	@$(BIN)/equiscale table mnist-scale --results results --epochs 1 --into docs/first-epochs.md
	@$(BIN)/equiscale table imagenette96 --results results --into docs/first-epochs.md
	@$(BIN)/equiscale table digits-scale --results results --into README.md
	@$(BIN)/equiscale bench --read results/benchmarks/speed.json --into README.md
	@$(BIN)/equiscale bench --read results/benchmarks/speed.json --into docs/benchmarks.md
	@$(BIN)/equiscale bench --read results/benchmarks/wrn.json --into docs/benchmarks.md
	@$(BIN)/python benchmarks/equivariance.py --read --into docs/bases.md
	@$(BIN)/python benchmarks/startup.py --read --into docs/speed.md
	@$(BIN)/python benchmarks/estimate.py --read --into docs/choosing-scales.md
	@$(BIN)/python benchmarks/exporting.py --read --into docs/deployment.md
	@$(BIN)/python benchmarks/quantisation.py --read --into docs/deployment.md
	@$(BIN)/python benchmarks/matrix.py --read --into docs/deployment.md
	@$(BIN)/python tools/add_pretrained.py table --into docs/weights.md
	@$(BIN)/python benchmarks/convert.py --read --into README.md
	@$(BIN)/python benchmarks/convert.py --read --into docs/convert.md
	@$(BIN)/python benchmarks/convert_published.py --read --into docs/convert.md
	@$(BIN)/python benchmarks/throughput.py --read --into docs/experiments.md
	@$(BIN)/python benchmarks/chaos.py --read --into docs/promises.md
	@$(BIN)/python benchmarks/scaling.py --read --into docs/distributed.md
	@$(BIN)/python benchmarks/scaling_plan.py --read --into docs/distributed.md

clean: ## Remove .venv and caches (never results)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
