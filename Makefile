# Targets: install demo test check ext bench fuzz torture clean. `make PYTHON=python3.12` chooses the interpreter,
# `make test WORKERS=8` how many processes share the tests.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
EXT_SOURCES := $(shell find ext -name '*.pyx' -o -name '*.pxd' -o -name '*.h')

EXT_MODULES := $(subst /,.,$(patsubst ext/%.pyx,%,$(filter %.pyx,$(EXT_SOURCES))))

.PHONY: install demo test check ext bench fuzz torture clean preflight

preflight:
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "dcmhaul needs Python 3.11 or newer; '$(PYTHON)' was not found: install python3 (Debian: apt-get install python3) or name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "dcmhaul needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1): name a newer one with make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing for '$(PYTHON)': install it (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || { echo "Python.h is missing for '$(PYTHON)': install the headers (Debian: apt-get install python3-dev)" >&2; exit 1; }
	@command -v $${CC:-cc} >/dev/null 2>&1 || { echo "a C compiler is missing: install one (Debian: apt-get install gcc libc6-dev)" >&2; exit 1; }

$(VENV)/.made: | preflight
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml setup.py $(EXT_SOURCES) $(VENV)/.made
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

$(VENV)/.check: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[check]'
	@touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/dcmhaul demo

test: $(VENV)/.test
	$(BIN)/python -bb -X dev -m pytest -q --dist worksteal --tx '$(WORKERS)*popen//python=$(BIN)/python -bb -X dev' $(PYTEST_ARGS)

$(VENV)/.fuzz: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	@touch $@

check: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint ext
	$(BIN)/mypy
	$(BIN)/mypy tests bench
	$(BIN)/python -m mypy.stubtest --concise --ignore-disjoint-bases --allowlist tests/stubtest.allow $(EXT_MODULES)
	$(BIN)/lint-imports

bench: $(VENV)/.test
	$(BIN)/python -m bench.loopback
	$(BIN)/python -m bench.tls
	$(BIN)/python -m bench.distance
	$(BIN)/python -m bench.query
	$(BIN)/python -m bench.retrieve
	$(BIN)/python -m bench.ingest
	$(BIN)/python -m bench.relay
	$(BIN)/python -m bench.memory
	$(BIN)/python -m bench.crowd
	$(BIN)/python -m bench.ledger
	$(BIN)/python -m bench.startup
	$(BIN)/python -m bench.micro

# FUZZ_SECONDS (60) for each target, or for FUZZ_TARGET alone.
fuzz: $(VENV)/.fuzz
	$(BIN)/python -m tests.fuzz

# TORTURE_KILLS (500) kills of everybody who takes part in transfers; TORTURE_SEED repeats a run.
torture: $(VENV)/.test
	$(BIN)/python -m tests.engine.torture

# For work on the extension: builds in place, without the isolated build environment.
ext:
	@test -e $(VENV)/.check || $(MAKE) $(VENV)/.check
	$(BIN)/python setup.py -q build_ext --inplace

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info
	find src -name '*.so' -delete
