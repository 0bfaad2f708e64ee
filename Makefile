# One virtual environment for everything; made once, brought up to date when its two inputs change.
# One that something else made, `make test VENV=DIRECTORY`, is used as it is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FOREIGN := $(and $(filter-out .venv,$(VENV)),$(wildcard $(BIN)/python),$(if $(wildcard $(VENV)/.installed),,yes))
INSTALLED := $(if $(FOREIGN),,$(VENV)/.installed)
# Whatever package the environment holds, this checkout is what runs, in other folders too.
export PYTHONPATH := $(CURDIR)
# Compiling what PyTorch imports anew in every process would take more time than some of the tests.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test rounding processors lint docs fuzz mutants gpu bench release-check clean

demo: $(INSTALLED)
	$(BIN)/normfuse demo

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The tests whose outcome depends on how kernels round, as a processor without AVX rounds.
rounding: $(INSTALLED)
	$(BIN)/python -m tests.matrix.processors --only oldest -n 2 -m 'rounding and not gpu and not slow'

# All tests under each setting that tests/matrix/processors.py lists, and a line for each at the end.
processors: $(INSTALLED)
	$(BIN)/python -m tests.matrix.processors -n 2 $(TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site in build/site; a warning is an error. Links are checked by the tests too, which need no mkdocs.
docs: $(INSTALLED)
	$(BIN)/python -c 'import material' 2>/dev/null || PYTHONPATH= $(BIN)/python -m pip install --quiet \
		--disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Stop it and call it again: finished batches are kept in build/fuzz.
CASES ?= 1000
fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.campaign --cases $(CASES) --processes 2

# Every precondition of every rule, left out or granted, against the tests: some hours.
mutants: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants.runner

bench: $(INSTALLED)
	$(BIN)/python bench/compile_time.py --json build/compile_time.json

# What a user of each Python at hand installs. TORCH_FROM="DIRECTORY ..." lends PyTorch from environments that
# have it, which saves 5 GB for each; see tests/matrix/release.py.
release-check: $(INSTALLED)
	$(BIN)/python -m tests.matrix.release $(TORCH_FROM:%=--torch-from=%)

# For a machine with an accelerator where PyTorch, Triton and pytest are installed and normfuse is not:
# nothing is downloaded, and only the files with such tests are collected, so plugins of the others may be
# missing. Tests that fail, or are not done after 330 seconds, do not keep the rest from being measured: less
# than ten minutes in all.
GPU_READY := import sys, torch; sys.exit(not torch.cuda.is_available())
gpu:
	@if $(PYTHON) -c '$(GPU_READY)' 2>/dev/null; then \
		timeout --signal=INT --kill-after=20 330 $(PYTHON) -m pytest -o addopts= --import-mode=importlib -ra -m gpu \
			$$(grep -rl --include='test_*.py' 'mark\.gpu' tests); tested=$$?; \
		$(PYTHON) -m bench.kernels --gpu && exit $$tested; \
	else \
		echo "make gpu: $(PYTHON) sees no PyTorch with a CUDA device here, so no GPU test was run."; \
	fi

# --no-compile halves the time: most of what comes along is never imported.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PYTHONPATH= $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[test,bench,models]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
