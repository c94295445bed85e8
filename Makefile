# dbops: type make to see what there is.

GO        ?= go
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS   := -s -w -X main.version=$(VERSION)
BINARIES  := vault-plugin-secrets-dbops dbops-agent dbops
PACKAGES  ?= ./...
TEST_FLAGS ?=
FUZZTIME  ?= 10s
LINT      := $(GO) tool -modfile=scripts/tools/go.mod golangci-lint

# Every part that a test may need; a missing one is red, not skipped.
export DBOPS_REQUIRE ?= all

.DEFAULT_GOAL := help
.PHONY: help build parts fmt lint test test-versions race e2e fuzz fuzz-ci bench bench-creds demo demo-down clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build the three programs into bin/, static
	@mkdir -p bin
	@for program in $(BINARIES); do \
		echo "build bin/$$program"; \
		CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/$$program ./cmd/$$program || exit 1; \
	done

parts: ## get or make what the tests need: Docker, images, Vault
	@scripts/ensure-docker
	@for part in postgres mariadb redis tools; do \
		image=$$(scripts/ensure-image $$part) || exit 1; echo "$$part: $$image"; \
	done
	@vault=$$(scripts/ensure-vault) || exit 1; echo "vault: $$vault"
	@promtool=$$(scripts/ensure-promtool) || exit 1; echo "promtool: $$promtool"

fmt: ## format the code
	$(LINT) fmt

lint: ## check formatting, style and the directions of dependencies
	$(LINT) run $(PACKAGES)

test: build parts ## run every test, on real parts
	DBOPS_BIN_DIR=$(CURDIR)/bin $(GO) test -count=1 -timeout 30m -p 2 $(TEST_FLAGS) $(PACKAGES)

race: parts ## run the tests of plugin and agent under the race detector (needs gcc)
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 30m -p 2 $(TEST_FLAGS) \
		$$($(GO) list $(PACKAGES) | grep -v /testenv)

test-versions: ## run what touches databases on other versions of them (VERSIONS=trixie)
	@GO=$(GO) TEST_FLAGS="$(TEST_FLAGS)" scripts/test-versions $(VERSIONS)

e2e: build parts ## run the end-to-end tests only
	DBOPS_BIN_DIR=$(CURDIR)/bin $(GO) test -count=1 -timeout 30m -v $(TEST_FLAGS) ./testenv/e2e/...

fuzz: ## run each fuzz target for FUZZTIME (10s)
	@GO=$(GO) FUZZTIME=$(FUZZTIME) scripts/fuzz $(PACKAGES)

# Templates, quoting and decoding of the credentials engine. The two kinds of DSN
# are decoded by FuzzConfigFields too.
FUZZ_CREDENTIALS := ./plugin ./plugin/dialect ./plugin/internal/account/...

fuzz-ci: ## run the credentials engine's fuzz targets for 60s, two at a time
	@GO=$(GO) FUZZTIME=60s FUZZ_AT_ONCE=2 FUZZ='^Fuzz(UsernameTemplate|(Config|Role|StaticRole|Policy)Fields|RenderPostgres|RenderMySQL|ParseRules)$$' \
		scripts/fuzz $(FUZZ_CREDENTIALS)

# The local image for all: it has the peers to compare with, in one version.
bench: export DBOPS_IMAGES := local
bench: build parts ## compare our clone with others' on the same data (SCALE=200)
	DBOPS_BIN_DIR=$(CURDIR)/bin $(GO) run ./testenv/bench

bench-creds: build parts ## compare our logins with the built-in engine's (DURATION=2.5s)
	DBOPS_BIN_DIR=$(CURDIR)/bin $(GO) run ./testenv/benchcreds

demo: build parts ## show the whole of it on this machine, from request to receipt
	DBOPS_BIN_DIR=$(CURDIR)/bin $(GO) run ./testenv/demo

demo-down: ## remove what an interrupted demo left
	DBOPS_BIN_DIR=$(CURDIR)/bin $(GO) run ./testenv/demo -down

clean: ## remove what make built, but for Vault and the image
	rm -rf bin dist
	rm -f testenv/bin/vault-plugin-secrets-dbops testenv/bin/*-fault testenv/bin/dbops-agent testenv/bin/dbops
	$(GO) clean -testcache
