# The one door to the project: `make help` lists what is behind it.

.DEFAULT_GOAL := help
CARGO ?= cargo

.PHONY: help tools lint test crds

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

tools: ## Install what the tests need (Debian 12)
	@scripts/install-tools

lint: ## Check the format, run clippy, check that ring stays out
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@if $(CARGO) tree --workspace -i ring 2>/dev/null | grep -q '^ring '; then echo 'ring is in the build graph' >&2; exit 1; fi

test: tools ## Run all tests
	$(CARGO) test --workspace
