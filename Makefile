# `make help` lists the commands. Works with GNU Make 3.81 (macOS) and later; needs Python >= 3.11 with venv.

PORT ?= 8080
PYTHON ?=
ARGS ?=
MINUTES ?= 10

VENV := .venv
BIN := $(VENV)/bin
# Stamps: what runs is in the venv; and what tests and tools need.
RUNS := $(VENV)/.run
INSTALLED := $(VENV)/.dev
# For `make run`, where Debian has it: an etcd whose progress is believed (docs/guarantees.md), which the package's is not.
ETCD := 3.5.16

.DEFAULT_GOAL := help
.PHONY: run check test lint types helm chart map image release bench leak torture soak lock clean help install FORCE

# A venv knows its own path and its Python: a copied checkout or a Python that is gone means a new one.
ifneq ($(shell test -x $(BIN)/python && cat $(RUNS) 2>/dev/null),$(CURDIR))
$(RUNS): FORCE
endif

$(RUNS): requirements-run.txt tools/venv.sh tools/python.sh
	@PYTHON='$(PYTHON)' sh tools/venv.sh run $(ETCD)

$(INSTALLED): $(RUNS) requirements-dev.txt requirements-build.txt
	@PYTHON='$(PYTHON)' sh tools/venv.sh dev $(ETCD)

install: $(RUNS)  ## install into .venv what runs, from the lock: .venv/bin/etcd-watch-gateway

run: $(RUNS)  ## embedded etcd + gateway + something to see; PORT=9090 for another port
	@PATH="$(CURDIR)/.cache/etcd/$(ETCD):$$PATH" exec $(BIN)/etcd-watch-gateway dev --port $(PORT) $(ARGS)

check: $(INSTALLED)  ## for every save: lint, types, and each test that starts no process; under a minute
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(BIN)/python -m pytest -q -n auto -m 'not process' $(ARGS)

test: $(INSTALLED)  ## lint, check the types, run every test; ARGS='-k feed' for some, BUSY=4 beside busy loops, STEP_CLOCK=1
	@sh tools/system.sh
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(BIN)/python tools/tests.py $(ARGS)

lint: $(INSTALLED)  ## ruff: rules and format
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check

types: $(INSTALLED)  ## mypy, strict
	$(BIN)/python -m mypy

helm: $(INSTALLED)  ## everything about the chart: lint, schema, manifests, NOTES (and the Dockerfile's lint)
	$(BIN)/python -m pytest tests/deploy/test_chart.py $(ARGS)

chart: $(INSTALLED)  ## write the chart's values.schema.json and README.md from their sources
	$(BIN)/python tools/chart.py

map: $(INSTALLED)  ## draw docs/map.svg, the rooms of app/ and who imports whom
	$(BIN)/python -m tools.draw_map

image: $(INSTALLED)  ## build the image with buildah and run it (root on Debian)
	@sh tools/system.sh
	$(BIN)/python -m pytest tests/deploy/test_image.py $(ARGS)

release: $(INSTALLED)  ## build what is published into dist/: wheel, sdist, chart, image, SBOM, checksums; publishes nothing
	@$(BIN)/python -m tools.release $(ARGS)

bench: $(INSTALLED)  ## beside Nchan, Pushpin, the naive app and etcd's gateway: writes docs/benchmarks.md (30 minutes)
	@sh tools/system.sh
	$(BIN)/python -m benchmarks $(ARGS)

leak: $(INSTALLED)  ## the outage reproduced with the naive shape, and gone with the gateway
	$(BIN)/python -m benchmarks.leak $(ARGS)

torture: $(INSTALLED)  ## every stream judged against etcd's history under faults; MINUTES=10 on each etcd, ARGS='--seed 7'
	@ETCD_BIN_DIRS="$${ETCD_BIN_DIRS:-$$($(BIN)/python tools/etcds.py .cache/etcd)}" \
		$(BIN)/python -m tests.consistency.torture --minutes $(MINUTES) $(ARGS)

soak: $(INSTALLED)  ## churn for MINUTES=30: memory, tasks, descriptors and what etcd holds stay flat
	@$(BIN)/python -m tests.soak.soak --minutes $(if $(filter file,$(origin MINUTES)),30,$(MINUTES)) $(ARGS)

lock:  ## write the locks anew; UPGRADE=1 takes the newest versions
	@PYTHON='$(PYTHON)' UPGRADE='$(UPGRADE)' sh tools/lock.sh

clean:  ## remove what make and the tools wrote (.cache, with helm and etcd, too)
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile
