# `make demo` and `make test` work in a fresh clone.

PYTHON ?= python3
VENV   ?= .venv
OUT    ?= gpu-check
PARTS  ?=
DEMO   ?= runs/demo
BENCH  ?= runs/bench
QUICK  ?=

BIN      := $(VENV)/bin
# Without bytecode, which Python writes at the first import.
INSTALL  := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# Inputs of the build: a change of any of them triggers a rebuild.
SOURCES  := $(shell find csrc -type f 2>/dev/null) setup.py native_build.py pyproject.toml constraints.txt fastgan/_version.py

# The seed of the tests' random draws.
SEED     ?= 0
MINUTES  ?= 10
# One thread per process, to avoid oversubscription. Two processes more than cores, as some tests
# wait for signals and other processes.
WORKERS  ?= $(shell $(PYTHON) -c 'import os; print(2 + (os.cpu_count() or 1))')
# With bytecode, or each of the suite's many processes would compile all sources.
unexport PYTHONDONTWRITEBYTECODE
SEEDED   := OMP_NUM_THREADS=1 FASTGAN_TEST_SEED=$(SEED)
TESTING  := $(SEEDED) $(BIN)/python -m pytest --numprocesses $(WORKERS) --doctest-modules tests fastgan

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-suite test-processors quick fuzz attack lint docs format bench tables gpu-check wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# A comma in an argument of a function.
, := ,
TESTED   := torch._inductor.compile_fx$(,) torch.onnx$(,) torch.export$(,) torch.distributed$(,) \
    matplotlib.figure$(,) hypothesis$(,) pytest
# CI treats warnings and spilled registers as errors.
STRICT   := $(if $(filter test-all,$(MAKECMDGOALS)),FASTGAN_BUILD_STRICT=1)

# torch first: the build needs its headers, so pip must not use build isolation. The compilers run
# while pip unpacks the other packages on one core, which takes as long. Then imports write bytecode,
# or every process of the tests would compile the same modules. Without MAKEFLAGS, as ninja can't use
# make's job server.
define install
@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
@echo "installing into $(VENV) ..."
@$(INSTALL) setuptools ninja torch numpy
@export MAKEFLAGS=; $(1) $(BIN)/python native_build.py & FASTGAN_BUILD_NATIVE=0 \
    $(INSTALL) --no-build-isolation -e '.[$(2)]' && $(BIN)/python -c 'import $(3)' && wait $$!
@MAKEFLAGS= $(1) $(INSTALL) --no-build-isolation --no-deps -e .
@$(BIN)/python -c 'import fastgan; print(fastgan.build_info().summary())'
endef

$(VENV)/.installed: $(SOURCES)
	$(call install,$(STRICT),test$(,)bench$(,)lint,$(TESTED))
	@touch $@ $(VENV)/.installed-for-cpu $(VENV)/.installed-for-demo

# Compiling the CUDA kernels takes longest, and a demo without a GPU can't use them.
$(VENV)/.installed-for-cpu: $(SOURCES)
	$(call install,FASTGAN_BUILD_CUDA=0,test$(,)bench$(,)lint,$(TESTED))
	@touch $@ $(VENV)/.installed-for-demo

# The demo's packages, without the tests' tools.
$(VENV)/.installed-for-demo: $(SOURCES)
	$(call install,FASTGAN_BUILD_CUDA=0,plots,torch)
	@touch $@

# Without a GPU all but the CUDA kernels.
ALL_GPUS  := $(filter test-all wheel,$(MAKECMDGOALS))$(shell nvidia-smi -L 2>/dev/null)
INSTALLED := $(VENV)/.installed$(if $(ALL_GPUS),,-for-cpu)

demo: $(if $(ALL_GPUS),$(INSTALLED),$(VENV)/.installed-for-demo)  ## train a GAN on handwritten digits (about 2 minutes), show and evaluate its samples
	@rm -rf $(DEMO)
	@$(BIN)/fastgan train --model dcgan --conditional --projection --critic-norm none \
	    --loss relativistic --r1 0.3 --r2 0.3 --noise normal --batch-size 64 --ndf 32 --data digits \
	    --lr 3e-3 --beta1 0 --beta2 0.99 --lr-decay linear --steps 2500 --minutes 1 --out $(DEMO)
	@$(BIN)/fastgan evaluate $(DEMO) --n 1000 --json $(DEMO)/evaluation.json
	@echo "look at $(DEMO)/samples.png"

test: $(INSTALLED)  ## build for this machine, and test all parts (8 minutes on two cores)
	$(TESTING) -m "not exhaustive"

test-all: test-suite test-processors  ## build for every GPU, and test for every GPU and processor, as CI does

test-suite: $(INSTALLED)
	$(TESTING)

test-processors: $(INSTALLED)  ## the numerical tests with fewer instruction sets (half a minute)
	$(BIN)/python tests/processors.py

quick: $(INSTALLED)  ## the fast tests, without a compiler (a minute and a half)
	FASTGAN_TEST_EXAMPLES=10 $(TESTING) -m "not exhaustive and not slow"

fuzz: $(INSTALLED)  ## test new random examples for MINUTES, and print failures
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py $(MINUTES)

attack: $(INSTALLED)  ## 50 healthy and failing runs, and injected faults for MINUTES: faults.json
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/health.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/attack.py $(MINUTES) $(SEED)

lint: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)  ## build the site into build/site, with warnings as errors
	@$(INSTALL) mkdocs-material 'mkdocstrings[python]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(INSTALLED)  ## format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# An hour on two cores, minutes with QUICK=1.
bench: $(INSTALLED)  ## benchmark against PyTorch, table and page into BENCH=dir; QUICK=1 for less
	$(BIN)/fastgan bench --out "$(BENCH)" $(if $(QUICK),--quick)

tables: $(INSTALLED)  ## write the README's and the docs' tables from benchmarks/results
	$(BIN)/python benchmarks/make_tables.py

# With the system's python3 and packages: a GPU machine has its own torch, and may have no network.
gpu-check:  ## on a machine with a GPU: build, test and benchmark, into OUT=dir; PARTS=build,tests
	PARTS="$(PARTS)" benchmarks/gpu_check.sh "$(OUT)"

# Machine code for every GPU from the T4 on.
WHEEL_ARCHS := 7.5;8.0;8.6;8.9;9.0a;10.0;12.0+PTX

wheel: $(INSTALLED)  ## build a wheel and an sdist into dist/
	$(BIN)/python -m pip install --quiet -c constraints.txt build
	FASTGAN_CUDA_ARCHS="$(WHEEL_ARCHS)" $(BIN)/python -m build --no-isolation

clean:  ## remove build outputs, the environment and the demo's run
	rm -rf build dist $(VENV) $(DEMO) fastgan.egg-info fastgan/*.so
