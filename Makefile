# make demo and make test do all the set-up they need: a virtual environment in .venv.
PYTHON ?= python3
BIN := .venv/bin

# Where an NVIDIA driver answers, the CUDA extra of its own major version.
CUDA_VERSION := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[a-zA-Z ]*Version: *\([0-9]*\).*/\1/p')
CUDA_EXTRA := $(if $(CUDA_VERSION),$(if $(filter 12,$(CUDA_VERSION)),cuda12,cuda13))
comma := ,

.PHONY: demo test bench gpu lint install clean

demo: .venv/demo
	$(BIN)/gpudrop demo

# The second run has Numba's CUDA kernels in the simulator, which needs a process of its own.
SIMULATED := $(patsubst %,tests/test_%.py,backends device_generator family parts values readme)
test: install
	$(BIN)/python -m pytest -n auto
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/python -m pytest -n auto $(SIMULATED)

# On an idle machine, about 20 minutes; make bench ARGUMENTS=--quick takes 3. Peers that can't be installed take no part.
bench: install
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m bench cpu $(ARGUMENTS)

# On a machine with a GPU, with its own Python and the packages it has: nothing is installed. ARGUMENTS=--quick as above.
gpu:
	@$(PYTHON) -m bench.gpu_here
	$(PYTHON) -m pytest -m gpu tests
	$(PYTHON) -m bench.sanitize
	$(PYTHON) -m bench gpu $(ARGUMENTS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: .venv/dev

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/demo: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[demo$(if $(CUDA_EXTRA),$(comma)$(CUDA_EXTRA))]'
	touch $@

# The dev extra brings CUDA 13's packages on Linux x86-64, with which CUDA code is compiled without a GPU;
# on a machine with a CUDA 12 driver, the test extra and CUDA 12's. Where PyTorch's build for CUDA is not wanted, install
# the one for the CPU into .venv before: the constraints keep it.
.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(if $(filter cuda12,$(CUDA_EXTRA)),test$(comma)cuda12,dev)]'
	touch $@ .venv/demo
