# Every target installs what it needs; a second run skips what is done.
PYTHON ?= /usr/bin/python3
VENV   := .venv
BIN    := $(VENV)/bin
export VEDETTE_BUILD ?= release
# The demo stays up for exploring where HOLD is set.
export HOLD
# pytest's own arguments, as in: make test ARGS='-k ring -x'
ARGS ?=
# How long `make fuzz` looks.
SECONDS ?= 60
# Tests that have no kernel programs and no namespaces, and so can run beside each other.
BESIDE := tests/aggregator tests/core tests/fuzz
# Tests of the compiled core that `make sanitize` runs.
SANITIZED := tests/core/test_engine.py tests/core/test_cache.py tests/core/test_floor.py \
             tests/core/test_correlator.py tests/core/test_computed.py tests/core/test_switch.py \
             tests/core/test_tables_stateful.py tests/fuzz

.DEFAULT_GOAL := help
.PHONY: help machine build lint test soak life overhead sanitize demo docs bench plan-check dist deb vm-test \
        vm-bpf vm-overhead vm-image clean

help:
	@echo 'make build     install what is missing, make $(VENV), compile'
	@echo 'make test      lint, then all tests (root; ARGS=... goes to pytest)'
	@echo 'make demo      three hosts, one attack, one incident (root; HOLD=1 keeps it up)'
	@echo 'make soak      faults and kills at random moments, 50 times each (root; about an hour)'
	@echo 'make life      a day of processes in minutes, and every way to come and go (root)'
	@echo 'make overhead  what the agent costs builds, logins and servers (root)'
	@echo 'make sanitize  the core under AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make fuzz      any bytes into the record decoder (clang, libFuzzer; SECONDS=60)'
	@echo 'make lint      ruff, mypy --strict, cython-lint'
	@echo 'make docs      write the tables in docs/ from the code'
	@echo 'make bench     benchmarks (ARGS=... goes to pytest)'
	@echo 'make plan-check  a simulated fleet, forecast and measured, within 20 % (some minutes)'
	@echo 'make plots     the benchmarks of the core, drawn into docs/plots'
	@echo 'make dist      the wheel and the source distribution, in dist/'
	@echo 'make deb       the Debian packages, in build/deb/'
	@echo 'make vm-test   install, attack, kill and reboot them in a virtual machine (root; slow)'
	@echo 'make vm-bpf    the tests of capture there, on Debian'\''s kernel 6.1 (root; slow)'
	@echo 'make vm-overhead  what the agent costs there, in instructions (root; slow)'
	@echo 'make clean     remove $(VENV), build/ and caches'
	@echo
	@echo 'VEDETTE_BUILD=release|trace|sanitize  build flavour, now $(VEDETTE_BUILD)'
	@echo 'VEDETTE_VM_KERNEL=bookworm-backports  another kernel there: the suite of Debian that has it'
	@echo 'PYTHON=...                            interpreter of the venv, now $(PYTHON)'

machine:
	@packaging/machine-setup.sh

build: machine $(VENV)/.installed
	$(BIN)/python setup.py -q build_ext --inplace

$(VENV)/.installed: pyproject.toml | machine
	$(PYTHON) -m venv --system-site-packages $(VENV)
	@$(BIN)/pip install -q 'setuptools>=77' 'Cython>=3.1' 'numpy>=1.26' && \
	$(BIN)/pip install -q --no-build-isolation -e '.[dev]' || { \
	    echo 'make: pip could not install the packages named in pyproject.toml; its message is' \
	         'above. Where there is no network, give it an index or wheels (PIP_INDEX_URL,' \
	         'PIP_FIND_LINKS), then run this again.' >&2; exit 1; }
	touch $@

# All four run, so that one run shows everything.
lint: build
	@status=0; PATH="$(CURDIR)/$(BIN):$$PATH"; set -x; \
	ruff check . || status=1; \
	ruff format --check . || status=1; \
	mypy -p vedette || status=1; \
	cython-lint $(wildcard core/*.pyx core/*.pxd) || status=1; \
	exit $$status

# The tests run even where lint finds something.
test: build
	@status=0; \
	$(MAKE) --no-print-directory lint || status=1; \
	if [ -n '$(ARGS)' ]; then $(BIN)/pytest $(ARGS) || status=1; exit $$status; fi; \
	$(BIN)/pytest $(BESIDE:%=--ignore=%) || status=1; \
	$(BIN)/pytest -n auto --dist loadfile $(BESIDE) || status=1; \
	$(MAKE) --no-print-directory sanitize || status=1; \
	$(MAKE) --no-print-directory fuzz SECONDS=8 || status=1; \
	exit $$status

# What the core's own tests do, with every access checked. Python itself leaks on purpose.
sanitize: export VEDETTE_BUILD := sanitize
sanitize: machine $(VENV)/.installed
	$(BIN)/python setup.py -q build_ext --inplace
	ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	$(BIN)/pytest -q -s -p no:cacheprovider --timeout 600 $(SANITIZED)

# Any bytes into the record decoder, guided by what they reach; SECONDS is how long. What it finds is
# build/fuzz/crash-…; the corpus it begins from and adds to is tests/fuzz/corpus.
fuzz: export VEDETTE_BUILD := fuzz
fuzz: machine $(VENV)/.installed
	@packaging/machine-setup.sh fuzz
	CC=clang-14 LDSHARED='clang-14 -shared' $(BIN)/python setup.py -q build_ext --inplace
	mkdir -p build/fuzz/found
	clang-14 -g -O1 -fsanitize=fuzzer,address,undefined -o build/fuzz/driver tests/fuzz/driver.c \
	    $$($(BIN)/python tests/fuzz/flags.py)
	PYTHONPATH="$$($(BIN)/python tests/fuzz/flags.py path)" PYTHONMALLOC=malloc \
	VEDETTE_FUZZ=tests.fuzz.records:one ASAN_OPTIONS=detect_leaks=0 \
	build/fuzz/driver -max_total_time=$(SECONDS) -max_len=4096 -timeout=10 -rss_limit_mb=2048 \
	    -artifact_prefix=build/fuzz/ -verbosity=0 -print_final_stats=1 build/fuzz/found tests/fuzz/corpus

# Each fault of the network, the disks and the processes, again and again.
soak: export VEDETTE_FAULT_RUNS := 50
soak: build
	$(BIN)/pytest -q tests/fleet/test_faults.py $(ARGS)

# Whether the process table survives a day: a million short processes, 50,000 at once, losses.
life: build
	$(BIN)/python -m vedette.bench.life $(ARGS)

# What an agent costs a host's programs, and itself; installs redis and nginx, with their services off.
overhead: build
	@packaging/machine-setup.sh bench
	$(BIN)/python -m vedette.bench.overhead $(ARGS)

demo: build
	$(BIN)/python -m tests.fleet.demo

docs: build
	$(BIN)/python -m vedette.core.ruledoc

bench: build
	$(BIN)/pytest bench -o python_files='bench_*.py' $(ARGS)

# The planner's forecast of a simulated fleet, held to what is measured of it.
plan-check: build
	$(BIN)/pytest bench/bench_plan.py -o python_files='bench_*.py' -q -s $(ARGS)

# What docs/performance.md shows of the core, measured again (some minutes) and drawn.
plots: build
	$(BIN)/pytest bench/bench_core.py -o python_files='bench_*.py' -q \
	    --benchmark-json=build/bench_core.json
	$(BIN)/python -m bench.plots build/bench_core.json docs/plots

dist: build
	@packaging/make-dist.sh

deb: build
	@packaging/machine-setup.sh deb
	@packaging/make-deb.sh

# The packages in a plain Debian 12, and in a machine of their own with Debian's kernel.
vm-test: export VEDETTE_VM_TEST := 1
vm-test: deb vm-image
	$(BIN)/pytest -s -v tests/vm $(ARGS)

# The image is made once, in build/vm, from Debian's archive; other kernels are added to it.
vm-image: machine
	@packaging/machine-setup.sh vm
	@packaging/vm/make-image.sh
	@[ -z "$$VEDETTE_VM_KERNEL" ] || packaging/vm/add-kernel.sh "$$VEDETTE_VM_KERNEL"

# tests/bpf, of this checkout, on the kernel of that machine with its own headers.
vm-bpf: export VEDETTE_VM_BPF := 1
vm-bpf: build vm-image
	$(BIN)/pytest -s -v tests/vm/test_bpf.py $(ARGS)

# What capture costs on that kernel, with all instructions counted.
vm-overhead: build vm-image
	$(BIN)/python -m tests.vm.overhead $(ARGS)

clean:
	rm -rf $(VENV) build dist vedette.egg-info .mypy_cache .pytest_cache .ruff_cache \
	    .hypothesis .benchmarks
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
