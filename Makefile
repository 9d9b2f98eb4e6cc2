# `make demo` and `make test` set up everything they need, on a machine with only Python (3.11 or later) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench bench-likelihood verification clean

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

bench: $(STAMP)
	GOMP_SPINCOUNT=10000 $(BIN)/python benchmarks/throughput.py

verification: $(STAMP)
	$(BIN)/python tests/verification.py

# Hours. One thread, because the weights are then the same, bit for bit, wherever the processor is of the same kind.
bench-likelihood: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/likelihood.py --json docs/results/likelihood.json

clean:
	rm -rf $(VENV) runs

# The pins are a set that was installed and imported together. The stamp is made anew when they change.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)
