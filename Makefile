# Entry points. The work is in setup/; nothing is decided here.
.DEFAULT_GOAL := help
.PHONY: help run django setup build test fuzz torture soak bench pictures fmt lint audit clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

run: ## set up what is missing, start PostgreSQL and vecsync on real text, stay until Ctrl-C
	@setup/run.sh

django: ## beside make run, in another terminal: a Django site on port 8001 that searches with vecsync
	@setup/site.sh

setup: ## fetch everything that run, test and bench need (afterwards they work offline)
	@setup/setup.sh

build: ## build the release binary
	cargo build --release --locked

test: ## format, lints, tests, Django, licences, alert rules, scripts
	@setup/test.sh

fuzz: ## feed damaged bytes to what reads the replication connection, TIME=60 seconds a target
	@setup/fuzz.sh $(TIME)

torture: ## SIGKILL of whatever runs, KILLS=1000 times at seeded moments (SEED=4711), then both stores against the table
	@setup/torture.sh "$(KILLS)" "$(SEED)"

soak: ## embed rows of mixed lengths for TIME=3600 seconds; fails where memory grows. MODEL=fp32 is the other model
	@setup/soak.sh "$(TIME)" "$(MODEL)"

bench: ## measure freshness, backfill and search; ARGS are handed on
	@setup/bench.sh $(ARGS)

pictures: ## take the pictures of the page in docs/ anew, from the real FAQ text
	@setup/pictures.sh

fmt: ## format the Rust code
	cargo fmt --all

lint: ## format check and lints only
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --package qdrant-test-server --profile test-server --all-targets -- -D warnings

audit: ## known vulnerabilities of the dependencies (needs the network)
	@setup/audit.sh

clean: ## remove what was built and set up in this clone (the download cache stays)
	@setup/clean.sh
