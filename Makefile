# `make demo` and `make test` set up everything by themselves. README.md lists the plain commands for
# use without make.

PYTHON ?= python3.11
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo photos app test test-machines lint coverage soak check gpu-check clean

help:
	@echo "make demo      render faces, train, evaluate, sample (15 minutes on 2 cores; resumes)"
	@echo "make photos PHOTOS=FOLDER  train on a folder of photographs with captions and encoders (docs/photographs.md)"
	@echo "make app       serve a page: type a sentence, see faces (http://127.0.0.1:7860)"
	@echo "make test      install, lint, run the whole test suite"
	@echo "make test-machines  run the tests that compare bits as other processors compute (minutes)"
	@echo "make lint      check style, format, layers of imports, types"
	@echo "make coverage  run the quick tests and print the fraction of lines that they reach"
	@echo "make check     measure how often the shipped network shows what the sentence asks for"
	@echo "make gpu-check check a GPU: reference values, training, speed, memory (10 minutes)"
	@echo "make soak      run all long fault tests: kills, hostile files, odd values (hours)"
	@echo "make clean     remove the demo's data and results (not .venv)"

# A stamp for each requirements file: set-up is skipped while the file stays as it is.
.venv/.run: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -r requirements.txt
	@touch $@

.venv/.app: requirements-app.txt .venv/.run
	$(INSTALL) -r requirements-app.txt
	@touch $@

.venv/.dev: requirements.txt requirements-app.txt requirements-onnx.txt requirements-dev.txt .venv/.run
	$(INSTALL) -r requirements-dev.txt
	@touch $@

demo: .venv/.run
	$(BIN)/python demo/run.py

# The commands of README.md for one's own images. The databases lie beside the link to the folder.
photos: C = --config configs/others/photos.yaml
photos: .venv/.run
	@test -d "$(PHOTOS)/train/images" || { \
	  echo "make photos PHOTOS=FOLDER: no train/images in '$(PHOTOS)'; docs/photographs.md says what it holds"; exit 2; }
	@mkdir -p data/photos && ln -sfn "$$(cd "$(PHOTOS)" && pwd)" data/photos/source
	$(BIN)/python preprocess_scripts/create_latentspace_lmdb.py $C --with_clip --xflip
	$(BIN)/python train_prior.py $C
	$(BIN)/python preprocess_scripts/clip_encode_text.py $C --split test
	$(BIN)/python preprocess_scripts/fid_ref.py $C --features
	$(BIN)/python train_latent_t2f.py $C --exp_name photos
	$(BIN)/python eval_latent_t2f.py --experiment_dir results/photos
	$(BIN)/python t2f.py --ckpt "$$(ls results/photos/checkpoints/*.pt | tail -n 1)" --num 4 --out results/photos/prompts \
	  --prompt "a person with red hair" --prompt "a man with a long beard" --prompt "a person with glasses" \
	  --prompt "an old woman"
	@echo "Look at results/photos/prompts/grid.png and results/photos/evaluation/report.html"

app: .venv/.app
	$(BIN)/python demo/app.py

# Two processes of one thread each: two cores, and memory for two full-size networks. An idle one takes
# tests of the other.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-machines: .venv/.dev
	$(BIN)/python tests/machines.py

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=. $(BIN)/lint-imports --no-logo
	$(BIN)/mypy

# The e2e tests are left out: they run scripts as processes of their own.
coverage: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not e2e" --cov --cov-report=term

soak: .venv/.dev
	$(BIN)/python tests/faults/soak.py
	FAULT_KILLS=20 $(BIN)/python -m pytest -s tests/faults/test_preprocessing_kills.py
	FAULT_KILLS=20 $(BIN)/python -m pytest -s tests/evaluation/test_sweep.py -k killed
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest tests/faults/test_properties.py tests/data/test_odd_images.py
	$(BIN)/python tests/faults/fuzz_readers.py --seconds 600

check: .venv/.run
	$(BIN)/python demo/make_faces.py
	$(BIN)/python research/attributes/check_prompts.py

gpu-check: .venv/.run
	$(BIN)/python benchmarks/gpu_check.py

clean:
	rm -rf data/demo results/demo results/check_prompts
