# The one door to the project: `make help` lists what is behind it.

.DEFAULT_GOAL := help
CARGO ?= cargo

.PHONY: help run tools lint test e2e crds

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## Start everything in one process with the sample configuration
	$(CARGO) run --release --package packetboat -- all --config sample/packetboat.yaml

tools: ## Install what the tests need (Debian 12)
	@scripts/install-tools

lint: ## Check the format, run clippy, check that ring stays out
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@if $(CARGO) tree --workspace -i ring 2>/dev/null | grep -q '^ring '; then echo 'ring is in the build graph' >&2; exit 1; fi

# The scenarios in tests/ drive the binary, which has no roles yet: `make e2e` runs them, and they fail.
test: tools ## Run the tests of all crates
	$(CARGO) test --workspace --exclude packetboat-tests

e2e: tools ## Run the scenarios that drive the binary
	$(CARGO) test -p packetboat-tests

crds: ## Write the CustomResourceDefinitions to k8s/crds
	$(CARGO) run --quiet --package packetboat -- crds --folder k8s/crds
