# make demo and make test do all the set-up they need: a virtual environment in .venv.
PYTHON ?= python3
BIN := .venv/bin

# Where an NVIDIA driver answers, the CUDA extra of its own major version.
CUDA_VERSION := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[a-zA-Z ]*Version: *\([0-9]*\).*/\1/p')
CUDA_EXTRA := $(if $(CUDA_VERSION),$(if $(filter 12,$(CUDA_VERSION)),cuda12,cuda13))
comma := ,

.PHONY: demo docs test test-all mutants oldest coverage bench gpu lint package install clean

demo: .venv/demo
	$(BIN)/gpudrop demo

# A worker that is done takes tests of the other: those that compile CUDA kernels take minutes, and come together.
# The second run has Numba's CUDA kernels in the simulator, which needs a process of its own. ARGUMENTS go to pytest.
PYTEST := -m pytest -n auto --dist worksteal
SIMULATED := tests/backends tests/family tests/docs/test_snippets.py tests/docs/test_examples.py \
	tests/unit/test_selftest.py
test: install
	$(BIN)/python $(PYTEST) $(ARGUMENTS)
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/python $(PYTEST) $(SIMULATED) $(ARGUMENTS)

# All tests, with whole products of parameters; on two cores it takes the better part of an hour.
test-all:
	$(MAKE) test ARGUMENTS=--full

# The documentation, in build/docs/html; a warning is an error. Nothing is downloaded. DOCS=linkcheck instead looks
# at every external link.
DOCS := html
docs: install
	$(BIN)/sphinx-build -W --keep-going -q -b $(DOCS) docs build/docs/$(DOCS)

# Breakages of the package, each of which make test must see; ARGUMENTS are names of some of them.
mutants: install
	$(BIN)/python -m tests.mutants $(ARGUMENTS)

# The core of the tests with the oldest versions that pyproject.toml allows, and a cache of kernels of their own.
CORE := tests/unit $(patsubst %,tests/backends/test_%.py,masks cpu threads) \
	$(patsubst %,tests/family/test_%.py,family layers monte_carlo)
oldest: .venv-oldest/installed
	NUMBA_CACHE_DIR=$(CURDIR)/.venv-oldest/numba .venv-oldest/bin/python -m pytest -n auto $(CORE)

# Both runs of make test under coverage.py, one table, and the lines that no test reaches. It fails below 95 %.
coverage: install
	$(BIN)/coverage erase
	-$(BIN)/coverage run $(PYTEST)
	-NUMBA_ENABLE_CUDASIM=1 $(BIN)/coverage run $(PYTEST) $(SIMULATED)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# On an idle machine, about 20 minutes; make bench ARGUMENTS=--quick takes 3. Peers that can't be installed take no part.
bench: install
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m bench cpu $(ARGUMENTS)

# On a machine with a GPU, with its own Python and the packages it has: nothing is installed. ARGUMENTS=--quick as above.
gpu:
	@$(PYTHON) -m bench.gpu_here
	NUMBA_NUM_THREADS=1 $(PYTHON) -m pytest -n 8 --dist worksteal --full -m gpu tests
	$(PYTHON) -m bench.sanitize
	$(PYTHON) -m bench gpu $(ARGUMENTS)

# To a type checker kernels/ must lie where it is imported from.
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/types/gpudrop
	ln -sfn ../../../kernels build/types/gpudrop/kernels
	$(BIN)/mypy

# The wheel and the sdist in dist/, checked: their metadata, and that what is installed from each runs.
package: .venv/bin/python
	rm -rf dist
	$(BIN)/python -m pip install --quiet build twine
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	for file in dist/*; do \
		$(PYTHON) -m venv --clear build/package && build/package/bin/python -m pip install --quiet $$file \
		&& (cd build && package/bin/gpudrop selftest --quick) || exit 1; done

install: .venv/dev

clean:
	rm -rf docs/api/generated .venv .venv-oldest build dist *.egg-info .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/demo: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[demo$(if $(CUDA_EXTRA),$(comma)$(CUDA_EXTRA))]'
	touch $@

# The lower bounds of the core's dependencies, as exact versions; an interpreter for which they have packages is needed:
# PYTHON=python3.11, say.
OLDEST := $(shell sed -n 's/^dependencies = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",' | sed 's/>=/==/g')
.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --editable . $(OLDEST) hypothesis mpmath pytest pytest-xdist
	touch $@

# The dev extra brings CUDA 13's packages on Linux x86-64, with which CUDA code is compiled without a GPU;
# on a machine with a CUDA 12 driver, the test extra and CUDA 12's. Where PyTorch's build for CUDA is not wanted, install
# the one for the CPU into .venv before: the constraints keep it.
.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(if $(filter cuda12,$(CUDA_EXTRA)),test$(comma)cuda12,dev)]'
	touch $@ .venv/demo
