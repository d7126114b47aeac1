# Every target sets itself up: finds a Python (or takes PYTHON=...), makes the virtual
# environment in .venv, builds and installs. What is up to date is not done again.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

VENV ?= .venv
# More arguments for pytest (ARGS) and for the benchmarks (BENCH_ARGS).
ARGS ?=
BENCH_ARGS ?=
# How long `make soak` works, and which of the packages' test suites are run; by default all.
MINUTES ?= 20
SUITES ?=
# What `make wheels` builds wheels for and tries them on; by default the newest of each version.
PYTHONS ?=
OUT ?= dist
# A folder with wheels for `make test-installed`, which otherwise builds what it tests.
WHEELS ?=

# A caller's settings that would lead the environment astray. Without bytecode files every
# new interpreter would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE PYTHONHOME PYTHONPATH PYTHONSTARTUP PIP_TARGET PIP_PREFIX PIP_USER
export PIP_DISABLE_PIP_VERSION_CHECK = 1

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --quiet
BUILD_FILES := pyproject.toml setup.cfg setup.py
SOURCES := $(wildcard subinterp/*.pyx subinterp/*.pxd subinterp/_runtime/*.c subinterp/_runtime/*.h)

.PHONY: help dev demo test test-fast test-installed test-packages soak bench bench-short lint docs wheels debug tsan asan clean FORCE

help: ## show this list
	@echo "Targets (PYTHON=... chooses the Python; otherwise the newest suitable one is found):"
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/\1	\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='	' read -r name text; do \
		printf '  make %-15s %s\n' "$$name" "$$text"; done

# --- The environment ---------------------------------------------------------------------

# Changes only if the environment was made afresh, so that it is cheap to look every time.
$(VENV)/.python: FORCE
	@tools/make-venv $(VENV)

$(VENV)/.requirements: $(VENV)/.python pyproject.toml
	@echo "Installing what the build and the tests need into $(VENV)"
	@$(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
		>$(VENV)/build-requirements.txt
	@$(PIP) install -r $(VENV)/build-requirements.txt --group test
	@touch $@

# The tools that only some targets need.
$(VENV)/.bench $(VENV)/.lint $(VENV)/.wheels: $(VENV)/.%: $(VENV)/.requirements
	@echo "Installing what $* needs into $(VENV)"
	@$(PIP) install --group $*
	@touch $@

# Compiled packages of others: as wheels, or not at all.
$(VENV)/.packages $(VENV)/.data $(VENV)/.suites $(VENV)/.integrations $(VENV)/.docs: $(VENV)/.%: $(VENV)/.requirements
	@echo "Installing compiled packages ($*) into $(VENV)"
	@tools/install-wheels $(PY) $*
	@touch $@

# The first time and after a change of the build files: a whole editable install. After a
# change of sources only what is out of date.
$(VENV)/.built: $(VENV)/.requirements $(BUILD_FILES) $(SOURCES)
	@echo "Building the extension module"
	@if [ -f $@ ] && [ -z "$(filter-out $(SOURCES),$?)" ]; then \
		$(PY) setup.py --quiet build_ext --inplace; \
	else \
		$(PIP) install --no-build-isolation --editable .; \
	fi
	@touch $@

# --- What people run ---------------------------------------------------------------------

dev: $(VENV)/.built $(VENV)/.bench $(VENV)/.lint ## make .venv with an editable install and all tools
	@echo "Ready: $(PY) is $$($(PY) -c 'import sys; print("CPython", sys.version.split()[0])')"

demo: $(VENV)/.built $(VENV)/.data ## serially, threads, processes, interpreters: the standard library, and pandas
	@$(PY) demo $(ARGS)

test: $(VENV)/.built $(VENV)/.packages $(VENV)/.integrations ## run all tests (ARGS=... for pytest)
	@$(PY) -m pytest $(ARGS)

test-fast: $(VENV)/.built ## run the tests that take no more than a few seconds
	@$(PY) -m pytest -m "not slow and not stress and not packages and not integrations and not packaging" $(ARGS)

bench: $(VENV)/.built $(VENV)/.bench $(VENV)/.data ## measure ours and the rivals, with their ratios (BENCH_ARGS=...)
	@$(PY) -m bench $(BENCH_ARGS)

bench-short: BENCH_ARGS += --short
bench-short: bench ## the same with few rounds

soak: $(VENV)/.built $(VENV)/.data ## pandas and NumPy in two workers for MINUTES (20); fails if memory grows
	@$(PY) -m bench.soak --minutes $(MINUTES)

test-packages: ## packages' own test suites in a worker and in main, compared (SUITES="numpy scipy")
	@$(MAKE) --no-print-directory compare-suites VENV=.venvs/suites

lint: $(VENV)/.built $(VENV)/.lint ## ruff, mypy --strict, stubtest, cython -Werror, gcc -Werror
	@VENV=$(VENV) tools/lint

docs: $(VENV)/.built $(VENV)/.docs ## build the pages of the documentation into build/docs
	@$(PY) -m sphinx -W -E -q --keep-going -b html docs build/docs
	@echo "The pages are in build/docs: open build/docs/index.html."

wheels: $(VENV)/.wheels ## build the sdist and portable wheels, and try them (OUT=dist PYTHONS="python3.13 python3.14")
	@$(PY) tools/build-wheels --out $(OUT) $(PYTHONS)

# --- Other builds ------------------------------------------------------------------------

# These install a wheel into an environment of their own (not the one of `make dev`), and
# run the tests from a folder of it, where the checkout cannot be imported by mistake.
OUTSIDE = mkdir -p $(VENV)/outside && cd $(VENV)/outside && $(RUNNER) "$(CURDIR)/$(PY)"
TESTS = -m pytest -c "$(CURDIR)/pyproject.toml" --rootdir "$(CURDIR)" "$(CURDIR)/tests"
CHECKED := -m "not stress and not packages and not integrations and not packaging"
SANITIZED := $(MAKE) --no-print-directory test-sanitized

test-installed: $(VENV)/.requirements $(VENV)/.packages $(VENV)/.integrations ## test what the sdist installs, or a wheel (VENV=.venvs/NAME PYTHON=... WHEELS=dist)
ifeq ($(WHEELS),)
	@rm -rf $(VENV)/dist
	@echo "Building the sdist, and a wheel from it"
	@$(PY) -m build --sdist --outdir $(VENV)/dist . >$(VENV)/sdist.log 2>&1 || { cat $(VENV)/sdist.log; exit 1; }
	@$(PIP) install --force-reinstall $(VENV)/dist/subinterp-*.tar.gz
else
	@$(PIP) install --force-reinstall $(WHEELS)/subinterp-*-$$($(PY) -c 'import sys; print("cp%d%d" % sys.version_info[:2])')-*.whl
endif
	@$(OUTSIDE) -c 'import subinterp; print("Testing", subinterp.__file__)'
	@$(OUTSIDE) $(TESTS) $(ARGS)

debug: ## test a build without optimisation, with assertions, in Python's development mode
	@$(MAKE) --no-print-directory test-debug VENV=.venvs/debug SUBINTERP_DEBUG=1

tsan: ## test a build with the thread sanitizer
	@$(SANITIZED) VENV=.venvs/tsan SUBINTERP_SANITIZE=thread LIBRARY=libtsan.so

asan: ## test a build with the address sanitizer
	@$(SANITIZED) VENV=.venvs/asan SUBINTERP_SANITIZE=address LIBRARY=libasan.so

.PHONY: test-debug test-sanitized install-flavour compare-suites

install-flavour: $(VENV)/.requirements
	@echo "Building the extension module"
	@$(PIP) install --no-build-isolation --force-reinstall .

compare-suites: install-flavour $(VENV)/.suites
	@$(OUTSIDE) "$(CURDIR)/tools/test-packages" $(SUITES)

test-debug: install-flavour
	@$(OUTSIDE) -X dev $(TESTS) $(CHECKED) $(ARGS)

# Python is not built with the sanitizer, so its library has to come first; it wants the
# address space not to be randomised. Reports go to files: pytest would swallow them.
REPORT = $(CURDIR)/$(VENV)/report
test-sanitized: RUNNER = $$(setarch -R true 2>/dev/null && echo setarch -R) env \
	LD_PRELOAD="$$(gcc -print-file-name=$(LIBRARY))" \
	TSAN_OPTIONS="suppressions='$(CURDIR)/tools/tsan-suppressions' log_path='$(REPORT)' ignore_noninstrumented_modules=1 die_after_fork=0" \
	ASAN_OPTIONS="log_path='$(REPORT)' detect_leaks=0"
test-sanitized: install-flavour
	@rm -f "$(REPORT)".*
	@$(OUTSIDE) $(TESTS) $(CHECKED) $(ARGS); status=$$?; \
		if cat "$(REPORT)".* 2>/dev/null; then echo "The sanitizer has something to say: see above."; exit 1; fi; \
		exit $$status

clean: ## remove everything that was made here
	rm -rf .venv .venvs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks .coverage
	rm -f subinterp/*.so subinterp/_core.c subinterp/_core.html
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
