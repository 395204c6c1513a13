#!/usr/bin/env bash
# `make torture`: SIGKILL of vecsync, PostgreSQL, Qdrant's test server and the broker so many times (the first argument, 1000 if there
# is none), half of them with the embedded log and half over Kafka, from a seed on (the second, 4711).
set -euo pipefail
. "$(dirname "$0")/places.sh"
cd "$ROOT"
setup/preflight.sh test
setup/fetch.sh model postgres kafka
. setup/test_env.sh
KILLS=${1:-1000}
[[ $KILLS =~ ^[1-9][0-9]{0,6}$ ]] || die "KILLS is $KILLS: wanted a number of kills"
cargo build --locked --package qdrant-test-server --profile test-server
VECSYNC_TEST_KILLS=$(((KILLS + 1) / 2)) VECSYNC_TEST_SEED=${2:-4711} \
  exec cargo test --locked --test live kills:: -- --test-threads=1 --nocapture
