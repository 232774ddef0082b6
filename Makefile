# Set-up is part of every target: on a fresh machine `make demo` and `make test` are all there is to type.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export NO_MKDOCS_2_WARNING := 1
unexport PYTHONDONTWRITEBYTECODE
READY := $(VENV)/.ready
# A file's tests share what they set up, so files are what is dealt out; many threads in each process would only collide
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-minimum lint types docs audit fuzz bench clean

demo: $(READY)  ## search on the built-in network; the report ends the output
	$(BIN)/haq search --constraint latency=10ms

test: lint types  ## everything that CI checks
	$(PYTEST)

MINIMUM := .venv-minimum

test-minimum:  ## the tests at the lowest versions that pyproject.toml allows; PyTorch's comes with gigabytes of CUDA
	$(PYTHON) -m venv $(MINIMUM)
	$(MINIMUM)/bin/pip install --quiet uv
	$(MINIMUM)/bin/uv pip install --quiet --python $(MINIMUM)/bin/python --resolution lowest-direct --editable '.[hf,test]'
	$(subst $(BIN),$(MINIMUM)/bin,$(PYTEST))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive haq hwmodels envs search
	$(BIN)/mkdocs build --quiet --strict -f .ci/mkdocs.yml

# mypy cannot follow the mapping of top-level folders to sub-packages, so it reads an installed copy.
types: $(READY)
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p haq

# Not part of `lint`: it needs the network, and an advisory of tomorrow must not fail the code of today.
audit: $(READY)  ## known vulnerabilities of the pinned packages; fails, too, where the advisories cannot be had
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

FUZZ_SECONDS ?= 300

fuzz: $(READY)  ## coverage-guided, of each parser in turn; the input that fails is left in a file crash-…
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	for parser in $$($(BIN)/python -m tests.fuzz); do \
	  $(BIN)/python -m tests.fuzz $$parser -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=8192 || exit 1; \
	done

docs: $(READY)  ## the documentation, rebuilt whenever a page changes
	$(BIN)/mkdocs serve -f .ci/mkdocs.yml

bench: $(READY)  ## figures of the README; see benchmarks/README.md
	$(BIN)/python benchmarks/bitserial.py
	$(BIN)/python benchmarks/table_speed.py
	$(BIN)/python benchmarks/qat_step.py
	$(BIN)/python benchmarks/default_search.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "haq needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(MINIMUM) build
