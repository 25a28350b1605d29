# All targets work in .venv, which make builds from a lock: every version is pinned, every file has its hash.
PYTHON ?= python3
BIN := .venv/bin
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --no-header

.DEFAULT_GOAL := help
BUILT := $(or $(ARNAS_CACHE),$(HOME)/.cache/arnas)/bin
.PHONY: help demo test test-manifests test-kfp test-image image minio control-plane argo lint format typecheck bench \
	generate lock clean
.NOTPARALLEL:

help: ## List these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 @ \2/p' Makefile | awk -F@ '{ printf "%-18s%s\n", $$1, $$2 }'

demo: .venv/runtime ## Run the whole pipeline on scikit-learn's digits; leaves out/demo/report.html and scores.json
	$(BIN)/python -m pipelines run --preset digits --output out/demo

test: .venv/dev ## Run the tests; those that need MinIO's server build it where Go is, or say that they were skipped
	-@$(BIN)/python tests/minio_server.py
	$(BIN)/python -m pytest -n 2 --ignore tests/manifests --ignore tests/rehearsal --ignore tests/images

test-manifests: .venv/dev control-plane ## Test the manifests and the compiled pods against a real Kubernetes control plane
	$(BIN)/python -m pytest tests/manifests

test-kfp: .venv/dev control-plane argo ## Run a compiled pipeline on a real Kubernetes API server and a real Argo, and lose its pods
	-@$(BIN)/python tests/minio_server.py
	$(BIN)/python -m pytest tests/rehearsal

test-image: .venv/dev ## Build the image and run the pipeline in it, without a network; PRESET=digits as the demo
	$(BIN)/python -m pytest tests/images

image: ## Build the image, by docker, podman or buildah; with BASE, PIP_INDEX_URL, TORCH_INDEX as in docs/air-gapped.md
	images/build

minio: ## Print where MinIO's server is; builds it with Go where there is none (MINIO names one)
	@$(PYTHON) tests/minio_server.py

lint: .venv/dev ## Check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: .venv/dev ## Mend style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

typecheck: .venv/dev ## Check types
	$(BIN)/mypy

bench: .venv/dev ## Measure our steps against their published form, in ten minutes; writes benchmarks/README.md
	$(BIN)/python -m benchmarks

generate: .venv/runtime ## Write anew what is generated: YAML of components and pipelines, their READMEs, the benchmarks' page
	$(BIN)/python -m pipelines compile
	$(BIN)/python -m benchmarks --page

lock: .venv/dev ## Write the locks anew from pyproject.toml; with UPGRADE=1, to the newest versions
	echo 'setuptools>=77' | $(COMPILE) $(if $(UPGRADE),--upgrade) --extra export --extra pipelines --extra dev pyproject.toml - \
		-o requirements-dev.lock
	echo 'setuptools>=77' | $(COMPILE) $(if $(UPGRADE),--upgrade) --extra export --extra pipelines -c requirements-dev.lock pyproject.toml - \
		-o requirements.lock

control-plane: $(or $(ETCD),$(BUILT)/etcd) $(or $(KUBE_APISERVER),$(BUILT)/kube-apiserver) $(or $(KUBECTL),$(BUILT)/kubectl)
control-plane: ## Build Kubernetes' API server, its store and its client for the tests, with Go, in about five minutes

argo: $(or $(WORKFLOW_CONTROLLER),$(BUILT)/workflow-controller) ## Build Argo's controller for the tests, with Go, in about two minutes

clean: ## Remove the environment and the caches; results in out/ stay
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The two stamps below are newer than the lock that they stand for. An installation that was interrupted leaves
# .venv/unfinished behind, and the next one begins with an empty .venv (pip keeps what it has downloaded). The lock's
# setuptools comes first, to build what has no wheel: an isolated build would fetch one that has no hash here. The lock is
# complete, so pip resolves nothing: it would look at versions that the lock has not, and stop there. What has a setup.py
# alone is built by PEP 517 too, as newer pips do unasked; one before 23.1 would warn.
.venv/runtime: requirements.lock pyproject.toml
	$(call install,requirements.lock)
	@touch $@

.venv/dev: requirements-dev.lock pyproject.toml
	$(call install,requirements-dev.lock)
	@touch .venv/runtime $@ # the dev lock holds all of the runtime lock

# Go's proxy serves sources, and go.sum has their hashes. Unstamped, Kubernetes would call itself v0.0.0.
KUBERNETES := $(shell sed -n 's/^.*k8s.io\/kubernetes v\([0-9.]*\).*/\1/p' tests/control_plane/go.mod)
STAMP := $(foreach value,gitVersion=v$(KUBERNETES) gitMajor=$(word 1,$(subst ., ,$(KUBERNETES))) \
	gitMinor=$(word 2,$(subst ., ,$(KUBERNETES))),-X k8s.io/component-base/version.$(value))

$(BUILT)/etcd: PACKAGE := go.etcd.io/etcd/server/v3
$(BUILT)/kube-apiserver: PACKAGE := k8s.io/kubernetes/cmd/kube-apiserver
$(BUILT)/kubectl: PACKAGE := k8s.io/kubernetes/cmd/kubectl
$(BUILT)/etcd $(BUILT)/kube-apiserver $(BUILT)/kubectl: tests/control_plane/go.mod
	@command -v go > /dev/null || { echo "Building $@ needs Go; install it, or name existing programs in ETCD," \
		"KUBE_APISERVER and KUBECTL." >&2; exit 1; }
	cd tests/control_plane && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w $(STAMP)' -o $@ $(PACKAGE)

$(BUILT)/workflow-controller: tests/rehearsal/go.mod
	@command -v go > /dev/null || { echo "Building $@ needs Go; install it, or name an existing program in" \
		"WORKFLOW_CONTROLLER." >&2; exit 1; }
	cd tests/rehearsal && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $@ \
		github.com/argoproj/argo-workflows/v3/cmd/workflow-controller

USABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input

define install
	@$(PYTHON) -c '$(USABLE)' 2>/dev/null || { echo "$(PYTHON) is not Python 3.11 or newer with venv;" \
		"install one and name it, for example: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@if [ -e .venv/unfinished ] || ! $(BIN)/python -c '$(USABLE)' 2>/dev/null; then \
		rm -rf .venv && mkdir .venv && touch .venv/unfinished && $(PYTHON) -m venv .venv; fi
	@touch .venv/unfinished
	@echo "Installing $(1) into .venv; the first time this downloads several GB on Linux (PyTorch with CUDA) ..."
	@sed -n '/^setuptools==/,/[^\\]$$/p' $(1) > .venv/setuptools.lock
	@$(PIP) --require-hashes -r .venv/setuptools.lock
	@$(PIP) --require-hashes --no-deps --no-build-isolation --use-pep517 -r $(1)
	@$(PIP) --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip check --disable-pip-version-check >&2 # asked after, of what the lock gave
	@rm .venv/unfinished
endef
