# `make` lists the targets. Everything they install goes into .venv, apart from Debian packages (scripts/system-packages).
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
TESTBED := PYTHONPATH=tests $(BIN)/python -m cluster.testbed
HAS_KOREAN_FONT := fc-list :lang=ko | grep . || ls -d /usr/share/fonts/*/nanum /usr/share/fonts/*/noto/NotoSansCJK*
HAS_POSTGRES := test -n "$$CRAWLFLEET_DATABASE_URL" || ls /usr/lib/postgresql/*/bin/initdb || test -x "$$(pg_config --bindir)/initdb"
LOCK := CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --upgrade --strip-extras --generate-hashes \
  --no-emit-options --no-emit-index-url --no-emit-find-links --no-emit-trusted-host

.DEFAULT_GOAL := help
.PHONY: help setup deps chrome-deps test-deps run test lint format crds lock bench bench-deps chaos cluster-deps cluster-build cluster-up cluster-down test-cluster cluster-matrix clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.installed ## install crawlfleet and its tools into .venv, if anything changed

.venv/.installed: requirements.lock pyproject.toml | deps
	@echo "installing crawlfleet and its tools into .venv; this takes a minute or two"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps -e .
	@touch $@

deps: ## install the Debian packages that running needs (as root), or say which
	@scripts/system-packages python3-venv '$(PYTHON) -c "import ensurepip"' postgresql '$(HAS_POSTGRES)'

chrome-deps: ## the same for sources that need a browser (Chrome, chromedriver, a font)
	@scripts/system-packages chromium-headless-shell 'test -x "$$CRAWLFLEET_CHROME" || test -x /usr/lib/chromium/chromium-headless-shell' \
	  chromium-driver 'test -x "$$CRAWLFLEET_CHROMEDRIVER" || command -v chromedriver' fonts-nanum '$(HAS_KOREAN_FONT)'

test-deps: ## the same for the tests
	@scripts/system-packages pgbouncer 'test -x /usr/sbin/pgbouncer'

run: setup chrome-deps ## crawl the stand-in shops with a local fleet, to the end
	$(BIN)/crawlfleet run --shops -f k8s/samples/local-batch.yaml $(RUN)

test: setup test-deps chrome-deps ## run the tests
	$(BIN)/pytest --ignore=tests/benchmarks --ignore=tests/chaos --ignore=tests/cluster

lint: setup ## check style, formatting, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy tests
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile.* tests/cluster/images/*.Dockerfile

format: setup ## format the code
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

crds: setup ## write k8s/crds from the models
	$(BIN)/crawlfleet crds --into k8s/crds

lock: setup ## raise every dependency to its newest version in the locks: of everything, of each image, of the build
	$(BIN)/pip install --quiet pip-tools
	$(LOCK) --unsafe-package crawlfleet --extra dev --extra bench --output-file requirements.lock pyproject.toml
	@sed -i '/^# WARNING/,$$d' requirements.lock # about crawlfleet itself, which is installed from here
	$(LOCK) --constraint requirements.lock --extra crawler --output-file crawler/requirements.lock pyproject.toml
	$(LOCK) --constraint requirements.lock --extra operator --output-file operator/requirements.lock pyproject.toml
	$(LOCK) --constraint requirements.lock --only-build-deps --build-deps-for wheel \
	  --output-file requirements-build.lock pyproject.toml

bench: setup bench-deps chrome-deps ## measure, beside Celery and Redis: `make bench BENCH="throughput --save FILE"`
	$(BIN)/python tests/benchmarks/bench.py $(BENCH)

bench-deps: ## the same for the benchmarks
	@scripts/system-packages redis-server 'command -v redis-server'

chaos: setup test-deps chrome-deps ## kill workers, browsers and databases, and count what is lost
	$(BIN)/pytest -s tests/chaos

cluster-deps: ## install the Debian packages that a test cluster needs (as root), or say which
	@scripts/system-packages containerd 'command -v containerd' runc 'command -v runc' \
	  containernetworking-plugins 'test -x /usr/lib/cni/ptp' iproute2 'command -v ip' nftables 'command -v nft' \
	  conntrack 'command -v conntrack' buildah 'command -v buildah' debootstrap 'test -x /usr/sbin/debootstrap'

cluster-build: setup cluster-deps ## build what the test cluster needs: its programs and the images
	$(TESTBED) build

cluster-up: setup cluster-deps ## start a real Kubernetes of two nodes here (as root), or bring its images up to date
	$(TESTBED) up

cluster-down: setup ## end the test cluster, and clear whatever a killed run left
	$(TESTBED) down

test-cluster: setup ## run tests/cluster on the test cluster, or on the one that CRAWLFLEET_TEST_KUBECONFIG names
	@test "$$(id -u)" -ne 0 || test -n "$$CRAWLFLEET_TEST_KUBECONFIG" || $(MAKE) --no-print-directory cluster-deps
	$(BIN)/pytest tests/cluster

cluster-matrix: setup cluster-deps ## run what needs no nodes on the other versions of Kubernetes
	for version in $(basename $(notdir $(wildcard tests/cluster/go/kubernetes/v*.mod))); do $(BIN)/pytest tests/cluster/test_jobs.py tests/cluster/test_crds.py --kubernetes $$version || exit; done

clean: ## remove what the other targets made
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
