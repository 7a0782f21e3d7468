# The verbs of this project. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile
COVERED := tests/secure_agg tests/hostile tests/vectors tests/simulation/test_dropouts.py tests/privacy tests/crash
DEPENDENCIES := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo experiments test test-long lint format protos bench clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.demo ## set up and run the demo: one server, four sites, real images; writes runs/demo/report.html (MODE=record-distributed: noise in shares)
	$(BIN)/python -m demo

experiments: $(VENV)/.experiments ## run the small studies of the images in DATA=FOLDER, or without it of the packaged digits; writes runs/report
	@rm -rf runs/report
ifdef DATA
	$(BIN)/fedmvp-experiment run studies/small-pacs-sketch.toml --data $(DATA)
	$(BIN)/fedmvp-experiment run studies/small-cifar10-unseen.toml --data $(DATA)
	$(BIN)/fedmvp-experiment report runs/small-pacs-sketch runs/small-cifar10-unseen --out runs/report
else
	@echo "DATA is not set: this runs the packaged digits; make experiments DATA=FOLDER runs FOLDER/pacs and FOLDER/cifar10"
	$(BIN)/fedmvp-experiment run studies/digits.toml
	$(BIN)/fedmvp-experiment report runs/digits --out runs/report
endif

test: $(VENV)/.dev ## set up and run the tests; every branch of secure_agg, ledger and accountants must be reached
	$(PYTEST) $(COVERED) --cov=secure_agg --cov=privacy --cov-branch --cov-fail-under=100 --cov-report=term-missing:skip-covered
	$(PYTEST) $(addprefix --ignore=,$(COVERED))

test-long: $(VENV)/.dev ## run every test, the exhaustive ones too
	$(PYTEST) -m "long or not long" --timeout 3600

lint: $(VENV)/.dev ## ruff, mypy --strict and the import arrow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## lay out the code with ruff
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: $(VENV)/.dev ## generate fedmvp/rpc/v1 from protos/
	$(BIN)/python -m tools.generate_protos

bench: $(VENV)/.demo ## print the figures of docs/performance.md
	$(BIN)/python -m benchmarks.secure_sum
	$(BIN)/python -m benchmarks.round_trip
	$(BIN)/python -m benchmarks.privacy
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.startup

clean: ## remove the virtual environment, caches and runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage runs *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is missing or older than Python 3.11"; \
	    echo "remedy: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 3; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "error: $(PYTHON) cannot make a virtual environment"; \
	    echo "remedy: install its venv module (Debian: apt install python3-venv)"; exit 3; }

$(VENV)/.demo: $(BIN)/python $(DEPENDENCIES)
	@echo "installing fedmvp into $(VENV) (a few minutes the first time)"
	$(PIP) --editable ".[demo]"
	@touch $@

$(VENV)/.experiments: $(VENV)/.demo
	@echo "installing what studies need into $(VENV)"
	$(PIP) --editable ".[demo,experiments]"
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "installing what the tests need into $(VENV)"
	$(PIP) --editable ".[demo,dev]"
	@touch $@
