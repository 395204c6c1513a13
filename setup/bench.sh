#!/usr/bin/env bash
# Sets up, then runs the benchmarks; measures nothing itself. Its arguments go to the benchmark program.
set -euo pipefail
. "$(dirname "$0")/places.sh"
cd "$ROOT"
setup/preflight.sh
setup/fetch.sh model postgres faq kafka
. setup/test_env.sh
cargo build --locked --package qdrant-test-server --profile test-server
exec cargo bench --locked --bench vecsync -- "$@"
