#!/usr/bin/env bash
# Sets up, then runs the benchmarks; measures nothing itself. Its arguments go to the benchmark program.
set -euo pipefail
. "$(dirname "$0")/places.sh"
cd "$ROOT"
setup/preflight.sh
setup/fetch.sh model postgres faq kafka
. setup/test_env.sh
exec cargo bench --locked --bench vecsync -- "$@"
