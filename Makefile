# Two commands do all set-up: `make demo` and `make test`. Everything below works without make too;
# README.md lists the plain commands.

PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: help demo test soak lint check clean

help:
	@echo "make demo    render faces, train, evaluate, sample (15 minutes on 2 cores; resumes)"
	@echo "make test    install, lint, run the whole test suite"
	@echo "make check   how often the shipped model's pictures show what the sentence asked"
	@echo "make soak    all long fault tests: kills, hostile files, odd values (hours)"
	@echo "make lint    style, format, layers of imports, types"
	@echo "make clean   remove the demo's data and results (not .venv)"

# One stamp per requirements file, so that set-up is skipped when nothing changed.
.venv/.run: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/.dev: requirements.txt requirements-dev.txt .venv/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: .venv/.run
	$(BIN)/python demo/run.py

# Two processes of one thread each: two cores, and memory for two full-size networks.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=. $(BIN)/lint-imports --no-logo
	$(BIN)/mypy

soak: .venv/.dev
	$(BIN)/python tests/faults/soak.py
	FAULT_KILLS=20 $(BIN)/python -m pytest -s tests/faults/test_preprocessing_kills.py
	FAULT_KILLS=20 $(BIN)/python -m pytest -s tests/evaluation/test_sweep.py -k killed
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest tests/faults/test_properties.py tests/data/test_odd_images.py
	$(BIN)/python tests/faults/fuzz_readers.py --seconds 600

check: .venv/.run
	$(BIN)/python demo/make_faces.py
	$(BIN)/python demo/check_prompts.py

clean:
	rm -rf data/demo results/demo results/check_prompts
