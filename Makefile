# `make demo` and `make test` set up everything they need, on a machine with only Python (3.11 or later) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench bench-full bench-likelihood bench-streaming bench-text bench-camera bench-imputation \
	bench-synthetic bench-novelty peers verification clean

demo: $(STAMP)
	$(BIN)/lowerbound train mlp --data mnist-5k --epochs 80 --out runs/demo --overwrite
	$(BIN)/lowerbound evaluate runs/demo --samples 500
	$(BIN)/lowerbound sample runs/demo --n 64 --out runs/demo/figures/generated.png
	@echo "The pictures are in runs/demo/figures."

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# As the command line sets them for itself (src/lowerbound/cli/app.py); here for every contestant.
QUIET := GOMP_SPINCOUNT=10000 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=536870912

# Under fifteen minutes. `make peers` once before, or the peers are named as left out.
bench: $(STAMP)
	$(QUIET) $(BIN)/python benchmarks/run.py throughput start memory evidence growth

# What takes longer: hours, of which the trainings are the lesser part, and log p(x) by 5,000 draws the greater.
bench-full: $(STAMP)
	$(QUIET) $(BIN)/python benchmarks/run.py quality
	$(QUIET) $(BIN)/python benchmarks/nll.py nll-10 --seeds 3 --json docs/results/nll-10.json
	$(QUIET) $(BIN)/python benchmarks/nll.py nll-60 --seeds 1 --json docs/results/nll-60.json

# Other people's toolkits, each in an environment of its own, by its own pins.
peers: .peers/pythae/.installed .peers/jax/.installed .peers/ctgan/.installed

.peers/%/.installed: benchmarks/peers/%.txt
	$(PYTHON) -m venv .peers/$*
	.peers/$*/bin/python -m pip install --quiet --only-binary :all: --requirement $<
	touch $@

verification: $(STAMP)
	$(BIN)/python tests/verification.py

# Memory and speed on 2 GB of pictures and of a table; it takes 3.5 GB of disk for some twenty minutes.
bench-streaming: $(STAMP)
	$(BIN)/python benchmarks/run.py streaming --threads 1 --out docs/results

# Hours. One thread, because the weights are then the same, bit for bit, wherever the processor is of the same kind.
bench-likelihood: $(STAMP)
	$(QUIET) OMP_NUM_THREADS=1 $(BIN)/python benchmarks/likelihood.py --json docs/results/likelihood.json

# Some minutes. The word list is /usr/share/dict/words (Debian: apt-get install wamerican); DATA=FILE gives another.
bench-text: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/text.py --json docs/results/text.json $(if $(DATA),--data $(DATA))

# Half an hour: ten trainings with factors told, ten each with none.
bench-camera: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/camera.py --json docs/results/camera.json

# Minutes each. Tables: what is put into the holes, and what a classifier learns from made rows.
bench-imputation: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/imputation.py --json docs/results/imputation.json

bench-synthetic: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/synthetic.py --json docs/results/synthetic.json

# Minutes. MNIST, and Fashion-MNIST (Debian: dataset-fashion-mnist) where it is at hand; DATA=FOLDER says where.
bench-novelty: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/novelty.py --json docs/results/novelty.json $(if $(DATA),--data-dir $(DATA))

# Trainings of your own in runs/ stay.
clean:
	rm -rf $(VENV) .peers runs/demo runs/bench

# The pins are a set that was installed and imported together. The stamp is made anew when they change.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)
