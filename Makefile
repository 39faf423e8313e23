# `make` lists the targets. CI runs `make test` and nothing else.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# A clone that belongs to another user must build too; the version is stamped
# by scripts/build.sh instead. The tags are those of the static binary (see
# there); tests have them too, so that the libraries are compiled only once.
export GOFLAGS := -buildvcs=false -tags=netgo,osusergo $(GOFLAGS)
# Tests of the binary take this one instead of building their own.
export CAIRN_BIN := $(CURDIR)/bin/cairn

LINT := go tool -modfile=tools/lint/go.mod golangci-lint

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## one static binary: bin/cairn
	@scripts/build.sh bin/cairn

.PHONY: setup
setup: ## install what tests and demo need (Debian; says what is missing elsewhere)
	@scripts/setup.sh test

.PHONY: demo
demo: ## take, roll back, clone and delete points of a real ext4 disk
	@scripts/setup.sh demo
	@scripts/build.sh bin/cairn
	@scripts/demo.sh bin/cairn

.PHONY: test
test: setup build ## everything that must hold; this is what CI runs
	@echo "go vet ./..."
	@go vet ./...
	@echo "go test ./..."
	@go test -timeout 40m ./...

.PHONY: test-long
test-long: ## longer histories and power cuts, then 30 s for each fuzz target
	@scripts/setup.sh test-long
	@scripts/build.sh bin/cairn
	@CAIRN_LONG=1 go test -timeout 3h ./...
	@scripts/fuzz.sh "$${CAIRN_FUZZ_TIME:-30s}"

.PHONY: check
check: setup build ## format, vet, lint, tests with the race detector
	@bad=$$(gofmt -l .); if [ -n "$$bad" ]; then echo "not formatted (run gofmt -w):"; echo "$$bad"; exit 1; fi
	@go vet ./...
	@$(LINT) run ./...
	@go test -race -timeout 45m ./...

.PHONY: lint
lint: ## golangci-lint alone (its first build takes about two minutes)
	@$(LINT) run ./...

.PHONY: bench
bench: ## measure beside cp, qemu-img, restic, borg, qemu-nbd, nbdkit; writes docs/BENCH*.md
	@scripts/setup.sh bench
	@scripts/build.sh bin/cairn
	@go run ./test/bench -cairn bin/cairn -out docs/BENCH.md
	@go run ./test/bench/live -cairn bin/cairn -out docs/BENCH-LIVE.md

.PHONY: bench-live
bench-live: ## the second half of it: volumes that are served to clients
	@scripts/setup.sh bench
	@scripts/build.sh bin/cairn
	@go run ./test/bench/live -cairn bin/cairn -out docs/BENCH-LIVE.md

.PHONY: soak
soak: setup build ## everything at once for half an hour
	@CAIRN_SOAK=$${CAIRN_SOAK:-30m} go test -v -run TestSoak -parallel 16 -timeout 3h ./test/e2e

.PHONY: dev
dev: build ## serve on a temporary folder until Ctrl-C
	@scripts/dev.sh bin/cairn

.PHONY: clean
clean: ## remove what was built
	@rm -rf bin
