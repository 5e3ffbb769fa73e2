# Needs Python 3.8 or newer, make and git. What it installs goes into .venv, and `make clean` removes all it made.
PYTHON  ?= python3
PREFIX  ?= /usr/local
DESTDIR ?=
T       ?=
ARGS    ?=
MODULE  := velero_requests.py
TESTS   := test_velero_requests.py
VENV    := .venv/bin/python
LIB      = $(PREFIX)/lib/velero_requests
COMMAND  = $(DESTDIR)$(PREFIX)/bin/$(MODULE)
# Pinned, so that a test that fails today failed yesterday; the module itself takes any urllib3 1.26 or 2 and PyYAML.
RUNTIME := urllib3==2.8.0 PyYAML==6.0.4
TESTING := pytest==9.2.0 pytest-xdist==3.8.0 botocore==1.44.8
OLDEST  := 3.10
# Each process has servers of its own; the test file says what belongs together and in which order. Much of the time
# is waiting, so there is one process more than cores.
PARALLEL = -p $(basename $(TESTS)) -n $$(( $$($(VENV) -c 'import os; print(os.cpu_count() or 1)') + 1 )) \
	--dist loadgroup --no-loadscope-reorder
PIP     := $(VENV) -m pip install --quiet --no-input --disable-pip-version-check
# Runs $(1) with the python at hand when that has the two packages, else with the one of .venv.
run      = @if $(PYTHON) -c 'import urllib3, yaml' 2>/dev/null; then $(PYTHON) $(1); \
	else $(MAKE) --no-print-directory .venv/runtime && $(VENV) $(1); fi
# One sentence and the cure, where a Python lacks the two packages.
needs    = @$(PYTHON) -c 'import importlib.util, sys, velero_requests as v; \
	lacks = [name for name in ("urllib3", "yaml") if not importlib.util.find_spec(name)]; \
	sys.exit(v.report(v.Error(f"the package {lacks[0]} is missing", hints=v.MISSING_PACKAGE)) if lacks else 0)'
# Ctrl-C while Python still compiles the tests needs no traceback; once they run they have a handler of their own.
DEMO    := -c 'import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); import test_velero_requests as tests; \
	tests.main(["--demo"])'
# Streams are buffered and modules are compiled on every user's machine, so they are here.
unexport PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-alone matrix check bench pyz install uninstall clean venv FORCE

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s%s\n", $$1, $$2}' Makefile

demo: ## show the main job on a machine without a cluster
	$(call run,$(DEMO))

test: .venv/ready ## run all tests in .venv, about 6 minutes, or with T=Name those whose name contains it
	@$(if $(T),,echo "all tests take about 6 minutes on two cores; T=Name runs some of them")
	$(VENV) -m pytest -rs $(if $(T),-k '$(T)',$(PARALLEL)) $(ARGS) $(TESTS)

test-alone: ## run the tests with the python at hand; it needs urllib3 and PyYAML only
	$(needs)
	$(PYTHON) $(TESTS) $(if $(T),-k '$(T)')

matrix: ## run the tests as script and as archive on every Python at hand, about 10 minutes each; ARGS=--help tells more
	@$(PYTHON) .ci/matrix $(ARGS)

check: ## test the laws of the file; they include that Python 3.8 could read it
	$(call run,$(TESTS) -k Law)

bench: .venv/ready ## measure speed and memory, about seven minutes
	@$(VENV) .ci/bench

# The command runs the module from the folder it was installed into, with what Python compiled there: whoever may write
# into that folder could change the module itself as well.
pyz: ## make dist/velero_requests.pyz, which needs nothing but Python 3.8 or newer, and starts fastest with this PYTHON
	@if $(PYTHON) -c 'import pip' 2>/dev/null; then $(PYTHON) .ci/pyz dist; \
	else $(MAKE) --no-print-directory .venv/runtime && $(VENV) .ci/pyz dist; fi

install: ## put the one file into PREFIX/lib (/usr/local), compiled once for all starts, and its command into PREFIX/bin
	$(needs)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(LIB)
	install -m 644 $(MODULE) $(DESTDIR)$(LIB)
	$(PYTHON) -m compileall -q -d $(LIB) $(DESTDIR)$(LIB)
	@$(PYTHON) -c 'import sys; print("#!" + sys.executable)' > $(COMMAND)
	@printf '%s\n' 'import os, runpy, signal, sys' \
	'if signal.getsignal(signal.SIGINT) is signal.default_int_handler:' \
	'    signal.signal(signal.SIGINT, lambda *_: os._exit(130))' 'sys.path[0] = "$(LIB)"' \
	'runpy.run_module("velero_requests", run_name="__main__")' >> $(COMMAND)
	chmod 755 $(COMMAND)

uninstall: ## remove what install put there, with the same PREFIX
	rm -rf $(DESTDIR)$(LIB) $(COMMAND)

clean: ## remove what the other targets made
	rm -rf .venv .pytest_cache __pycache__ dist

.venv/ready: .venv/runtime
	$(PIP) $(TESTING)
	@touch $@

# Laid anew when the Makefile has changed, or PYTHON is another one than it was made by.
.venv/runtime: Makefile FORCE
	@made_by=$$($(PYTHON) -c 'import sys; print(sys.base_prefix, sys.version)') || exit 1; \
	[ Makefile -nt $@ ] || [ "$$made_by" != "$$(cat $@ 2>/dev/null)" ] || exit 0; \
	$(MAKE) --no-print-directory venv && echo "$$made_by" > $@

venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(OLDEST)".split("."))))' || { \
	echo "error: $(PYTHON) is no Python $(OLDEST) or newer, which the pinned packages need; name one with PYTHON=, or" \
	"install urllib3 and PyYAML for this one, which is enough for 'make demo' and 'make test-alone'" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	echo "error: $(PYTHON) has no venv or ensurepip; on Debian and Ubuntu 'apt-get install python3-venv'" >&2; exit 1; }
	rm -rf .venv && $(PYTHON) -m venv .venv && $(PIP) $(RUNTIME)
