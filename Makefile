# `make demo` and `make test` install what they need into .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-gpu test-slow test-versions lint format bench kernels bench-kernels gpu report wheel clean

help:  ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# torch first: with it in place the other packages do not pull another build of it. torchvision goes in without its
# dependencies, because it asks for the CUDA build of torch.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt torchvision
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[models,onnx,openvino,search,test]'
	@touch $@

demo: $(STAMP)  ## the whole search on a CPU in three to ten minutes on two cores: find, search, train, rewrite, compile, compare
	$(BIN)/jetvit demo --force

# Triton's interpreter takes the place of its compiler for a whole process: the kernels get one of their own.
test: $(STAMP)  ## the test suite
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow and not gpu and not interpreter"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow" tests/interpreter

test-gpu: $(STAMP)  ## the kernels' suite on a GPU, bf16 included
	$(BIN)/python -m pytest -m "gpu or interpreter"

test-versions: $(STAMP)  ## the test suite on the oldest, the pinned and the newest releases; hours, and 15 GB
	$(BIN)/pip install --quiet nox
	$(BIN)/nox
	$(BIN)/python -m benchmarks.compatibility

test-slow: $(STAMP)  ## the wide sweeps
	$(BIN)/python -m pytest -n auto --dist loadfile -m "slow and not gpu and not interpreter"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto --dist loadfile -m slow tests/interpreter

# The rooms are folders beside ./jetvit; mypy sees the package as an installed wheel would hold it.
lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/lint && mkdir -p build/lint/jetvit
	@ln -s $(CURDIR)/jetvit/* build/lint/jetvit/
	@for room in kernels patterns cost_model passes search; do ln -s $(CURDIR)/$$room build/lint/jetvit/$$room; done
	cd build/lint && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml

format: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## the programs behind the numbers of the README; writes benchmarks/results
	$(BIN)/python -m benchmarks.find_sites
	$(BIN)/python -m benchmarks.targets
	$(BIN)/python -m benchmarks.calibrate
	$(BIN)/python -m benchmarks.drift_cost
	$(BIN)/python -m benchmarks.cost_model
	$(BIN)/python -m benchmarks.whole_plans
	$(BIN)/python -m benchmarks.local_distillation
	$(BIN)/python -m benchmarks.ablation
	$(BIN)/python -m benchmarks.search_camvid
	$(BIN)/python -m benchmarks.search_nyuv2

kernels: $(STAMP)  ## registers, spills and instructions of every kernel on a Hopper GPU; needs no GPU
	$(BIN)/python -m benchmarks.kernels.resources

bench-kernels: $(STAMP)  ## the mixers against their rivals; on a GPU, elsewhere a dry run
	$(BIN)/python -m benchmarks.kernels

# MINUTES=9, OUT=folder of the results, ARCHIVE=file that keeps all results. A machine that has torch, Triton and
# transformers needs no installation: python3 -m benchmarks.gpu --minutes 9 --archive results.tar.gz
gpu: $(STAMP)  ## every number that needs a GPU, the most telling first, for nine minutes; elsewhere a dry run
	$(BIN)/python -m benchmarks.gpu --minutes $(or $(MINUTES),9) $(if $(OUT),--out $(OUT)) $(if $(ARCHIVE),--archive $(ARCHIVE))

report: $(STAMP)  ## write the README's tables from benchmarks/results
	$(BIN)/python -m benchmarks.report

wheel: $(STAMP)  ## build a wheel into dist/
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## remove what was built here
	rm -rf $(VENV) build dist out *.egg-info
