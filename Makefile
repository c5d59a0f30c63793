# make demo and make test create the virtual environment that they need, in .venv.
PYTHON ?= python3
BIN := .venv/bin

# With an NVIDIA driver, the CUDA extra of the driver's major version.
CUDA_VERSION := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[a-zA-Z ]*Version: *\([0-9]*\).*/\1/p')
CUDA_EXTRA := $(if $(CUDA_VERSION),$(if $(filter 12,$(CUDA_VERSION)),cuda12,cuda13))
comma := ,

.PHONY: demo docs test test-all mutants oldest coverage bench gpu lint package install clean

demo: .venv/demo
	$(BIN)/gpudrop demo

# worksteal: an idle worker takes tests from a busy one, because the tests that compile CUDA kernels take minutes.
# The second run tests Numba's CUDA kernels in the simulator, which needs a separate process. pytest gets ARGUMENTS.
PYTEST := -m pytest -n auto --dist worksteal
SIMULATED := tests/backends tests/family tests/docs/test_snippets.py tests/docs/test_examples.py \
	tests/unit/test_selftest.py
test: install
	$(BIN)/python $(PYTEST) $(ARGUMENTS)
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/python $(PYTEST) $(SIMULATED) $(ARGUMENTS)

# All tests, with all combinations of parameters. It takes most of an hour on two cores.
test-all:
	$(MAKE) test ARGUMENTS=--full

# The documentation, in build/docs/html; a warning is an error. Nothing is downloaded. DOCS=linkcheck instead looks
# at every external link.
DOCS := html
docs: install
	$(BIN)/sphinx-build -W --keep-going -q -b $(DOCS) docs build/docs/$(DOCS)

# Break the package on purpose, and check that make test fails each time. ARGUMENTS select breakages by name.
mutants: install
	$(BIN)/python -m tests.mutants $(ARGUMENTS)

# The core of the tests with the oldest versions that pyproject.toml allows. They have a separate cache of kernels.
CORE := tests/unit $(patsubst %,tests/backends/test_%.py,masks cpu threads) \
	$(patsubst %,tests/family/test_%.py,family layers monte_carlo)
oldest: .venv-oldest/installed
	NUMBA_CACHE_DIR=$(CURDIR)/.venv-oldest/numba .venv-oldest/bin/python -m pytest -n auto $(CORE)

# Both runs of make test under coverage.py, and one table with the lines that no test reaches. It fails below 95 %.
coverage: install
	$(BIN)/coverage erase
	-$(BIN)/coverage run $(PYTEST)
	-NUMBA_ENABLE_CUDASIM=1 $(BIN)/coverage run $(PYTEST) $(SIMULATED)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# 20 minutes on an idle machine, or 3 with ARGUMENTS=--quick. Libraries that can't be installed are left out.
bench: install
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m bench cpu $(ARGUMENTS)

# For a machine with a GPU. It uses the installed Python and packages, and installs nothing. ARGUMENTS=--quick as above.
gpu:
	@$(PYTHON) -m bench.gpu_here
	NUMBA_NUM_THREADS=1 $(PYTHON) -m pytest -n 8 --dist worksteal --full -m gpu tests
	$(PYTHON) -m bench.sanitize
	$(PYTHON) -m bench gpu $(ARGUMENTS)

# A type checker must find kernels/ at its import path, gpudrop/kernels.
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/types/gpudrop
	ln -sfn ../../../kernels build/types/gpudrop/kernels
	$(BIN)/mypy

# Build the wheel and the sdist in dist/. Check their metadata, install each, and run the quick self-test.
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

# The lower bounds of the core's dependencies, as exact versions. They need an interpreter for which they have packages,
# for example PYTHON=python3.11.
OLDEST := $(shell sed -n 's/^dependencies = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",' | sed 's/>=/==/g')
.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --editable . $(OLDEST) hypothesis mpmath pytest pytest-xdist
	touch $@

# The dev extra installs CUDA 13's packages on Linux x86-64, which compile CUDA code without a GPU. With a CUDA 12
# driver, the test extra and CUDA 12's packages are installed instead. To avoid PyTorch's build for CUDA, install the
# build for the CPU into .venv first: the constraints keep it.
.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(if $(filter cuda12,$(CUDA_EXTRA)),test$(comma)cuda12,dev)]'
	touch $@ .venv/demo
