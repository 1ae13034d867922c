# The one door to the project: `make help` lists what is behind it.

.DEFAULT_GOAL := help
CARGO ?= cargo

.PHONY: help demo run tools lint deny test bench bench-domains bench-tracing chaos sim fuzz crds chart image image-twice cluster-test

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## Start everything in one process with the sample configuration
	$(CARGO) run --release --package packetboat -- all --config sample/packetboat.yaml

tools: ## Install what the tests need (Debian 12)
	@scripts/install-tools

lint: ## Check the format, run clippy, check that ring stays out and that the chart's README is true
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@if $(CARGO) tree --workspace -i ring 2>/dev/null | grep -q '^ring '; then echo 'ring is in the build graph' >&2; exit 1; fi
	scripts/chart-readme.py --check

deny: ## Check what the build is made of: licences, banned crates, sources, known vulnerabilities
	@scripts/cargo-deny

demo: tools ## Send real mail in and out of one process and tell what happened
	@echo 'Building packetboat …' && $(CARGO) build --package packetboat --package packetboat-tests --bins
	@$(CARGO) run --quiet --package packetboat-tests --bin demo

test: tools ## Run all tests, those that drive the binary too
	$(CARGO) build --package packetboat
	$(CARGO) test --workspace --no-fail-fast

bench: tools ## Measure Packetboat and Postfix under the same load (MESSAGES=5000 ROUNDS=3)
	$(CARGO) build --release --package packetboat
	PACKETBOAT_BIN="$${CARGO_TARGET_DIR:-$(CURDIR)/target}/release/packetboat" \
	$(CARGO) run --quiet --package packetboat-tests --bin bench

bench-domains: tools ## Measure the operator with DOMAINS (1000) MailDomains over a real API server and BIND
	$(CARGO) build --release --package packetboat
	PACKETBOAT_BIN="$${CARGO_TARGET_DIR:-$(CURDIR)/target}/release/packetboat" \
	$(CARGO) run --quiet --package packetboat-tests --bin domains

bench-tracing: tools ## Measure what it costs to trace every message (MESSAGES=10000 PAIRS=9)
	$(CARGO) build --release --package packetboat
	PACKETBOAT_BIN="$${CARGO_TARGET_DIR:-$(CURDIR)/target}/release/packetboat" \
	$(CARGO) run --quiet --release --package packetboat-tests --bin bench_tracing

chaos: tools ## Break things under load and balance the books: one line a fault
	$(CARGO) build --package packetboat
	@$(CARGO) run --quiet --package packetboat-tests --bin chaos

sim: ## Run the queue against its model: SEEDS (10000) runs embedded, REDIS_SEEDS (500) over Redis, from FIRST_SEED (1)
	SEEDS=$(or $(SEEDS),10000) REDIS_SEEDS=$(or $(REDIS_SEEDS),500) \
	$(CARGO) test --release --package queue --test simulation -- --nocapture

fuzz: ## Fuzz every parser, FUZZ_SECONDS (30) each
	@scripts/fuzz

crds: ## Write the CustomResourceDefinitions to k8s/crds and into the chart
	$(CARGO) run --quiet --package packetboat -- crds --folder k8s/crds
	@mkdir -p charts/packetboat/files/crds
	@find k8s/crds -name '*.yaml' ! -name kustomization.yaml -exec cp -t charts/packetboat/files/crds {} +

chart: crds ## Write what is made from other files: the chart's CRDs, ACL and README, and k8s/base
	cp crates/queue/src/redis/users.acl charts/packetboat/files/users.acl
	scripts/chart-readme.py
	scripts/kustomize-base

image: ## Build the container image: static, from scratch, not root (TAG=packetboat:0.1.0 PLATFORMS=linux/amd64,linux/arm64)
	@scripts/image

image-twice: ## Build the image in two folders, and compare the digests
	@scripts/image-twice

cluster-test: ## Install the chart on a real cluster, and break it under load: one line an event (EVENT=name KUBECONFIG=file)
	@scripts/cluster-test
