# make demo: installs what is missing, builds, and runs a lab of three hosts. make test: all tests.
# For Debian or Ubuntu, as root. Python packages go to .venv, system packages come from apt.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
# Tests wait more than they compute: more of them at a time than there are processors.
WORKERS := 4
BIN := $(VENV)/bin
PUMP := $(wildcard csrc/*.c csrc/*.h) build_ext.py setup.py
PARTS := build/parts/complete
export PATH := $(CURDIR)/$(BIN):$(PATH):/usr/sbin:/sbin
export DEBIAN_FRONTEND := noninteractive

.PHONY: help deps deps-dev build demo test test-dist test-machine soak soak-faults test-sanitizers test-foreign fuzz coverage-c lint bench bench-gate bench-scale screens dist man clean

help: ## show this
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

deps: packages $(VENV)/installed ## install what is missing to build and run
deps-dev: packages-dev $(VENV)/installed-dev $(VENV)/docker/complete ## install what is missing to test

# What makes network namespaces. Checked before anything is installed.
ROOT_ONLY := demo test test-dist test-machine test-sanitizers coverage-c soak soak-faults \
    bench bench-gate bench-scale screens dist
ifneq ($(filter $(ROOT_ONLY),$(MAKECMDGOALS)),)
ifneq ($(shell id -u),0)
$(error make $(firstword $(filter $(ROOT_ONLY),$(MAKECMDGOALS))) makes network namespaces: run it as root)
endif
endif

.PHONY: packages packages-dev packages-machine
packages:
	@tools/install-packages
packages-dev:
	@tools/install-packages dev
packages-machine:
	@tools/install-packages machine

$(BIN)/python: | packages
	@python=$$(tools/find-python) && "$$python" -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/python
	@echo "Installing Python packages into $(VENV)"
	@$(BIN)/python -m pip install --quiet 'setuptools>=77' --editable '.[etcd]'
	@tools/install-etcd $(BIN)
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(VENV)/installed
	@echo "Installing what the tests need into $(VENV)"
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/built: $(PUMP) $(VENV)/installed
	@echo "Compiling the packet pump"
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(PARTS): $(PUMP) tests/csrc/build_parts.py $(VENV)/installed
	@echo "Compiling the parts of it that the tests call"
	@$(BIN)/python -m tests.csrc.build_parts $(@D)
	@touch $@

$(VENV)/docker/complete: tools/install-docker | $(BIN)/python packages-dev
	@tools/install-docker $(VENV)/docker
	@touch $@

build: deps $(VENV)/built $(PARTS) ## compile the packet pump

demo: build ## run a lab of three hosts: pings and throughput between containers
	@$(BIN)/flannel-udp lab --hosts 3

test: deps-dev build ## all tests but those of the targets below; needs root and /dev/net/tun
	@$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile

test-dist: deps-dev build ## build, install and run the source archive and the wheel
	@$(BIN)/python -m pytest tests/dist_checks.py

test-machine: packages-machine build $(VENV)/installed-dev ## install on a virtual machine, reboot it: 4 minutes
	@$(BIN)/python -m pytest -s tests/machine

soak: deps-dev build ## test memory under traffic and route changes: SECONDS=300
	@$(BIN)/python -m pytest -s tests/e2e/test_soak_memory.py --soak-seconds=$(or $(SECONDS),300)

soak-faults: deps-dev build ## test faults of etcd, network and daemons in random order: SECONDS=600 SEED=1
	@$(BIN)/python -m pytest -s tests/e2e/test_faults_random.py -k any_order \
	    --faults-seconds=$(or $(SECONDS),600) --faults-seed=$(or $(SEED),$$RANDOM)

test-sanitizers: deps-dev ## the C tests and the extension under ASan, UBSan and TSan
	@$(MAKE) --no-print-directory -C tests/c asan tsan ext-asan-check

test-foreign: deps-dev ## the C tests without threads and the fuzzers on ARM and a big-endian CPU, emulated
	@$(MAKE) --no-print-directory -C tests/c foreign

fuzz: deps-dev ## each fuzzer for FUZZ_SECONDS (60)
	@$(MAKE) --no-print-directory -C tests/c fuzz

coverage-c: deps-dev ## lines of csrc/ that the C tests and the seeds of the fuzzers reach; fails below 95 %
	@$(MAKE) --no-print-directory -C tests/c coverage

lint: deps-dev build ## ruff, mypy --strict, compiler warnings as errors, clang-tidy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory -C tests/c lint

MEASURE := $(BIN)/python -m pytest bench --quiet --benchmark-quiet -o log_cli_level=INFO

bench: deps-dev build ## compare with kernel VXLAN for ten minutes; writes docs/benchmarks.*
	@mkdir -p build
	@$(MEASURE) --plan full --benchmark-json=build/bench.json
	@$(BIN)/python -m bench.report build/bench.json

# If a figure fails, the same number of rounds is measured again and all rounds are judged together.
bench-gate: deps-dev build ## measure for two minutes; fails if slower than bench/limits.toml allows
	@mkdir -p build
	@$(MEASURE) --plan gate --benchmark-json=build/bench-gate.json
	@$(BIN)/python -m bench.gate build/bench-gate.json || { \
	    echo "As many rounds again"; \
	    $(MEASURE) --plan gate --benchmark-json=build/bench-gate-more.json && \
	    $(BIN)/python -m bench.gate build/bench-gate.json build/bench-gate-more.json; }

bench-scale: deps-dev build ## measure up to 65,536 leases for five minutes; writes docs/scale.*; has limits
	@$(BIN)/python -m bench.scale docs/scale.json
	@$(BIN)/python -m bench.scale_report
	@$(BIN)/python -m bench.scale_gate

screens: deps-dev build ## update the pictures in docs/
	@$(BIN)/python -m pytest --quiet tests/e2e/test_screens.py --write-screens

dist: deps-dev ## build source archive and wheel in dist/, and run a lab from the wheel
	@rm -f dist/*.tar.gz dist/*.whl
	@$(BIN)/python -m build
	@$(BIN)/auditwheel repair --only-plat --wheel-dir dist dist/*-linux_*.whl
	@rm dist/*-linux_*.whl
	@tools/try-wheel $(BIN)/python dist/*.whl

man: deps-dev ## write the man page to dist/
	@mkdir -p dist
	@$(BIN)/python tools/make-man > dist/flannel-udp.8

clean: ## remove everything that was built, and .venv
	rm -rf $(VENV) build dist *.egg-info tests/c/build flannel_udp/backends/pump/_pump.*
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
